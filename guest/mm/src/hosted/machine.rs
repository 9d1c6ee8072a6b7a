//! A machine that has booted.

use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

use pagevisor_shared::units::CpuId;

use super::arena::HostPlatform;
use crate::Mm;

/// A machine in this process. The thread that booted it is its CPU 0.
#[derive(Debug)]
pub struct Machine {
    platform: &'static HostPlatform,
    mm: Option<Box<Mm<HostPlatform>>>,
}

impl Machine {
    pub(super) fn new(platform: &'static HostPlatform, mm: Mm<HostPlatform>, slab: bool) -> Self {
        let cpus = (0..mm.region().nr_cpus()).filter_map(CpuId::new);
        // A record is a kilobyte, and whatever still points to it must find it.
        let locals: Vec<_> =
            cpus.filter_map(|cpu| mm.cpu_local(cpu)).map(|local| &*Box::leak(Box::new(local))).collect();
        platform.set_cpus(locals);
        platform.bind(CpuId::default());
        if slab {
            mm.slab_init();
        }
        mm.finish_boot();
        Self { platform, mm: Some(Box::new(mm)) }
    }

    /// The memory stack.
    pub fn mm(&self) -> &Mm<HostPlatform> {
        self.mm.as_deref().expect("only Drop takes it")
    }

    /// The platform: clock and log.
    pub fn platform(&self) -> &'static HostPlatform {
        self.platform
    }

    /// Runs `work` with this thread as CPU `cpu`. No two threads may be the same CPU at a time.
    ///
    /// # Panics
    /// When the machine has no such CPU.
    pub fn on_cpu<R>(&self, cpu: usize, work: impl FnOnce(&Mm<HostPlatform>) -> R) -> R {
        let before = self.platform.bind(CpuId::new(cpu).expect("CPUs are numbered 0 to 63"));
        let result = work(self.mm());
        HostPlatform::unbind(before);
        result
    }

    /// The text logged so far, a line each.
    pub fn log_text(&self) -> String {
        self.platform.log_lines().into_iter().fold(String::new(), |text, (_, line)| text + &line + "\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.mm = None;
        self.platform.give_back();
    }
}
