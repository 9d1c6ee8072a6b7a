//! What the kernel does with a thread that was interrupted near a critical section, for any contents of the program's memory:
//! the very file, run here against what Linux's rules say in numbers that do not overflow.

#[path = "../../guest/kernel/src/rseq/section.rs"]
mod section;

use pagevisor_shared::layout::TASK_SIZE_MAX;
use proptest::prelude::*;
use section::{AREA_SECTION, AREA_SIZE, Bad, Fixup, fixup};

const AREA: u64 = 0x10_0000;
const DESCRIPTOR: u64 = 0x20_0000;
const SIGNATURE: u32 = 0x5305_3053;

/// A program's memory, as far as it matters, and where one of its threads was interrupted.
#[derive(Clone, Debug)]
struct Case {
    ip: u64,
    named: u64,
    version: u32,
    flags: u32,
    start: u64,
    len: u64,
    abort: u64,
    area_flags: u32,
    signature: u32,
    /// What is not there.
    missing: Option<u64>,
}

/// A section that is as it should be, interrupted.
const INSIDE: Case = Case {
    ip: 0x40_1010,
    named: DESCRIPTOR,
    version: 0,
    flags: 0,
    start: 0x40_1000,
    len: 0x20,
    abort: 0x40_2000,
    area_flags: 0,
    signature: SIGNATURE,
    missing: None,
};

impl Case {
    /// Words of the memory by address, with their bytes.
    fn words(&self) -> [(u64, u64, usize); 8] {
        [
            (AREA + AREA_SECTION, self.named, 8),
            (AREA + 16, self.area_flags.into(), 4),
            (DESCRIPTOR, self.version.into(), 4),
            (DESCRIPTOR + 4, self.flags.into(), 4),
            (DESCRIPTOR + 8, self.start, 8),
            (DESCRIPTOR + 16, self.len, 8),
            (DESCRIPTOR + 24, self.abort, 8),
            (self.abort.wrapping_sub(4), self.signature.into(), 4),
        ]
    }

    fn fixup(&self) -> Result<Fixup, Bad> {
        fixup(self.ip, AREA, SIGNATURE, |to, at| {
            for (index, byte) in to.iter_mut().enumerate() {
                let at = at.wrapping_add(index as u64);
                let holds = |(start, _, len): &&(u64, u64, usize)| at.wrapping_sub(*start) < *len as u64;
                let words = self.words();
                let (start, value, _) = words.iter().find(holds).filter(|_| self.missing != Some(at)).ok_or(())?;
                *byte = value.to_le_bytes()[at.wrapping_sub(*start) as usize];
            }
            Ok::<(), ()>(())
        })
    }

    /// Whether a range that is not empty has what is missing.
    fn lacks(&self, at: u64, len: u64) -> bool {
        self.missing.is_some_and(|missing| missing.wrapping_sub(at) < len)
    }

    /// What `rseq_ip_fixup` of Linux 6.1 does.
    fn expected(&self) -> Result<Fixup, Bad> {
        let limit = u128::from(TASK_SIZE_MAX);
        let [start, len, abort, ip] = [self.start, self.len, self.abort, self.ip].map(u128::from);
        if self.lacks(AREA + AREA_SECTION, 8) {
            return Err(Bad::Memory);
        }
        if self.named == 0 {
            return Ok(Fixup::Nothing);
        }
        if self.named >= TASK_SIZE_MAX {
            return Err(Bad::Section);
        }
        if self.named != DESCRIPTOR || self.lacks(DESCRIPTOR, 32) {
            return Err(Bad::Memory);
        }
        let section = start..start + len;
        if self.version > 0 || section.end >= limit || abort >= limit || section.contains(&abort) {
            return Err(Bad::Section);
        }
        let at = self.abort.wrapping_sub(4);
        match () {
            () if self.lacks(at, 4) => Err(Bad::Memory),
            () if self.signature != SIGNATURE => Err(Bad::Signature { found: self.signature, at }),
            () if !section.contains(&ip) => Ok(Fixup::Forget),
            () if self.flags != 0 => Err(Bad::Flags(self.flags)),
            () if self.lacks(AREA + 16, 4) => Err(Bad::Memory),
            () if self.area_flags != 0 => Err(Bad::Flags(self.area_flags)),
            () => Ok(Fixup::Abort(self.abort)),
        }
    }
}

/// Addresses near those that decide something, and any.
fn address() -> impl Strategy<Value = u64> {
    let near = prop::sample::select(vec![0, 0x40_1000, 0x40_1020, 0x40_2000, TASK_SIZE_MAX, 1 << 63, u64::MAX]);
    prop_oneof![9 => (near, -40i64..40).prop_map(|(at, off)| at.wrapping_add_signed(off)), 1 => any::<u64>()]
}

fn rarely<T: Clone + std::fmt::Debug + 'static>(usual: T, other: impl Strategy<Value = T>) -> impl Strategy<Value = T> {
    prop_oneof![9 => Just(usual), 1 => other]
}

prop_compose! {
    fn case()(
        (ip, start, abort) in (address(), rarely(0x40_1000, address()), rarely(0x40_2000, address())),
        named in rarely(DESCRIPTOR, prop_oneof![Just(0), address()]),
        len in prop_oneof![0u64..0x40, any::<u64>()],
        [version, flags, area_flags] in [rarely(0, any::<u32>()), rarely(0, any::<u32>()), rarely(0, any::<u32>())],
        signature in rarely(SIGNATURE, any::<u32>()),
        missing in rarely(None, prop_oneof![AREA..AREA + AREA_SIZE, DESCRIPTOR..DESCRIPTOR + 32, address()].prop_map(Some)),
    ) -> Case {
        Case { ip, named, version, flags, start, len, abort, area_flags, signature, missing }
    }
}

/// Whether the words of the case's memory are apart: another section than its own at the descriptor's place is another case.
fn is_apart(case: &Case) -> bool {
    let at = case.abort.wrapping_sub(4);
    let touches = |start: u64, len: u64| at.wrapping_sub(start) < len || start.wrapping_sub(at) < 4;
    !touches(AREA, AREA_SIZE) && !touches(DESCRIPTOR, 32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn any_memory_is_judged_by_linuxs_rules(case in case().prop_filter("words overlap", is_apart)) {
        prop_assert_eq!(case.fixup(), case.expected());
    }
}

#[test]
fn a_section_reaches_from_its_first_instruction_to_before_its_end() {
    let at = |ip| Case { ip, ..INSIDE }.fixup();
    for ip in [0x40_1000, 0x40_101f] {
        assert_eq!(at(ip), Ok(Fixup::Abort(0x40_2000)), "{ip:x}");
    }
    for ip in [0, 0x40_0fff, 0x40_1020, 0x40_2000, u64::MAX] {
        assert_eq!(at(ip), Ok(Fixup::Forget), "{ip:x}");
    }
    assert_eq!(Case { named: 0, ..INSIDE }.fixup(), Ok(Fixup::Nothing));
}

#[test]
fn what_is_no_section_ends_the_thread_wherever_it_is() {
    for ip in [INSIDE.ip, 0] {
        let inside = Case { ip, ..INSIDE };
        for bad in [
            Case { version: 1, ..inside.clone() },
            Case { start: TASK_SIZE_MAX, ..inside.clone() },
            Case { len: u64::MAX - inside.start, ..inside.clone() },
            Case { len: u64::MAX, ..inside.clone() },
            Case { abort: inside.start, ..inside.clone() },
            Case { abort: TASK_SIZE_MAX, ..inside.clone() },
            Case { named: TASK_SIZE_MAX, ..inside.clone() },
        ] {
            assert_eq!(bad.fixup(), Err(Bad::Section), "{bad:x?}");
        }
        let at = inside.abort - 4;
        assert_eq!(Case { signature: 1, ..inside.clone() }.fixup(), Err(Bad::Signature { found: 1, at }));
        for missing in [AREA + AREA_SECTION, DESCRIPTOR, DESCRIPTOR + 31, at] {
            assert_eq!(Case { missing: Some(missing), ..inside.clone() }.fixup(), Err(Bad::Memory), "{missing:x}");
        }
    }
    // Flags are looked at only inside.
    for (flagged, flags) in [(Case { flags: 1, ..INSIDE }, 1), (Case { area_flags: 8, ..INSIDE }, 8)] {
        assert_eq!(flagged.fixup(), Err(Bad::Flags(flags)));
        assert_eq!(Case { ip: 0, ..flagged }.fixup(), Ok(Fixup::Forget));
    }
}
