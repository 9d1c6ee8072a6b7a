//! What the parameters of a workload mean to the guest.
//!
//! | key | value | meaning |
//! |---|---|---|
//! | `seed` | number | where its random numbers start |
//! | `ops` | number | steps |
//! | `cpus` | `0-3+6` | CPUs that take part; in a `replay` those that stand in for the trace's, in turn |
//! | `gfp` | `KERNEL\|DMA32` | flags of its allocations |
//! | `order` | 0 to 10 | size of its blocks |
//! | `mix` | `0:90+3:9+9:1` | how often it takes which order |
//! | `placement` | `local`, `preferred:1`, `bind:0-1`, `interleave:0+2` | where its pages come from |
//! | `nth` | number | keep every so many-th page |
//! | `fill` | percent | how much of free memory to fill |
//! | `hold` | number | most blocks held at a time, or KiB of a scull device; a `fragment` that says neither this nor `fill` takes 16384 |
//! | `touch` | 0 to 64 | cache lines written and read in each page |
//! | `keep` | `yes`, `no` | whether pages stay allocated at the end; those of a `fragment` do |
//! | `kind` | `anon`, `zero`, `cow`, `cow-reuse`, `file`, `stack`, `mprotect`, `file-read`, `file-write`, `private-read`, `private-write`, `node-local`, `node-remote` | what the program of a `fault` does ([`Touch`]) |
//! | `pages` | number | pages that it touches |
//! | `file` | path | trace to replay: the text of `trace_pipe` or `pagevisor events` |

use std::path::Path;

use pagevisor_shared::MAX_NUMNODES;
use pagevisor_shared::command::Placement;
use pagevisor_shared::command::workload::{Kind, Params, Touch};
use pagevisor_shared::units::{CpuMask, MAX_ORDER, NodeId, NodeMask, Order};

use super::{Messages, Value, Workload};

/// The keys, as an error names them.
const KEYS: &str = "seed, ops, cpus, gfp, order, mix, placement, nth, fill, hold, touch, keep, kind, pages, file";
/// Pages that a `fragment` fills which does not say how much: 64 MiB.
const FRAGMENT_PAGES: u32 = 16384;
/// Cache lines in a page.
const MAX_TOUCH: u64 = 64;

impl Workload {
    /// What the guest is to be told: the parameters, and the records of a trace that is to be replayed, which is read
    /// here.
    ///
    /// # Errors
    /// In one line, with the key.
    pub fn encode(&self) -> Result<Messages, String> {
        let params = self.decode()?;
        if params.kind != Kind::Replay {
            return Ok(Messages::of(&params));
        }
        let path = self.params.get("file").ok_or("file: a replay needs one")?.to_string();
        Messages::of_trace(&params, Path::new(&path)).map_err(|reason| format!("file: {path}: {reason}"))
    }

    /// The parameters, those that are not said with their defaults.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn decode(&self) -> Result<Params, String> {
        let kind = Kind::named(&self.name).ok_or_else(|| super::unknown(&self.name))?;
        let mut params = Params::new(kind);
        for (key, value) in &self.params {
            set(&mut params, key, value).map_err(|reason| format!("{key}: {reason}"))?;
        }
        if kind == Kind::Fragment {
            self.moderate(&mut params);
        }
        Ok(params)
    }

    /// Fragmented memory is for looking at, so it stays; and half of a large machine would take hours to fill where
    /// ring 0 is emulated, so who does not say how much gets a sample.
    fn moderate(&self, params: &mut Params) {
        let says = |key: &str| self.params.contains_key(key);
        params.keep |= !says("keep");
        if !says("fill") && !says("hold") {
            params.hold = FRAGMENT_PAGES;
        }
    }
}

fn set(params: &mut Params, key: &str, value: &Value) -> Result<(), String> {
    let text = value.to_string();
    match key {
        "seed" => params.seed = number(value, 0, u64::MAX)?,
        "ops" => params.ops = number(value, 1, u64::MAX)?,
        "cpus" => params.cpus = CpuMask(set_of(&text, pagevisor_shared::NR_CPUS)?),
        "gfp" => params.gfp = text.parse().map_err(|error| format!("{text:?} is {error}"))?,
        "order" => params.order = order(&text)?,
        "mix" => params.mix = mix(&text)?,
        "placement" => params.placement = placement(&text)?,
        "nth" => params.nth = small(value, 1, u32::MAX.into())?,
        "fill" => params.fill = small(value, 0, 100)?,
        "hold" => params.hold = small(value, 0, u32::MAX.into())?,
        "touch" => params.touch = small(value, 0, MAX_TOUCH)?,
        "keep" => params.keep = truth(&text)?,
        "kind" | "pages" if params.kind != Kind::Fault => return Err("only a fault has one".to_owned()),
        "kind" => params.fault = touch(&text)?,
        "pages" => params.hold = small(value, 1, u32::MAX.into())?,
        "file" if params.kind == Kind::Replay => {}
        "file" => return Err("only a replay has one".to_owned()),
        _ => return Err(format!("there is no such parameter; there are {KEYS}")),
    }
    Ok(())
}

fn number(value: &Value, min: u64, max: u64) -> Result<u64, String> {
    match value {
        Value::Number(number) if (min..=max).contains(number) => Ok(*number),
        Value::Number(number) => Err(format!("{number} is out of range: {min} to {max}")),
        Value::Text(text) => Err(format!("{text:?} is not a number")),
    }
}

fn small(value: &Value, min: u64, max: u64) -> Result<u32, String> {
    // `max` is no more than 32 bits hold.
    number(value, min, max).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

fn truth(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" | "1" => Ok(true),
        "no" | "false" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither yes nor no")),
    }
}

fn touch(text: &str) -> Result<Touch, String> {
    let names = || Touch::ALL.map(Touch::name).join(", ");
    Touch::named(text).ok_or_else(|| format!("{text:?} is none of {}", names()))
}

fn order(text: &str) -> Result<Order, String> {
    let order = text.parse().ok().and_then(|order| Order::new(order).ok());
    order.ok_or_else(|| format!("{text:?} is not an order: that is 0 to {}", MAX_ORDER - 1))
}

/// `0:90+3:9`
fn mix(text: &str) -> Result<[u16; MAX_ORDER], String> {
    let mut mix = [0; MAX_ORDER];
    for part in text.split('+') {
        let bad = || format!("{part:?} is not ORDER:WEIGHT, such as 3:9");
        let (at, weight) = part.split_once(':').ok_or_else(bad)?;
        let slot = mix.get_mut(order(at)?.raw() as usize).ok_or_else(bad)?;
        *slot = weight.parse().map_err(|_| bad())?;
    }
    match mix.iter().all(|&weight| weight == 0) {
        true => Err("all weights are zero".to_owned()),
        false => Ok(mix),
    }
}

/// `local`, `preferred:1`, `bind:0-1`, `interleave:0+2`
fn placement(text: &str) -> Result<Placement, String> {
    let nodes = |list: &str| set_of(list, MAX_NUMNODES).map(NodeMask);
    match text.split_once(':') {
        None if text == "local" => Ok(Placement::Local),
        Some(("preferred", node)) => {
            let node = node.parse().ok().and_then(NodeId::new).ok_or_else(|| format!("{node:?} is not a node"))?;
            Ok(Placement::Preferred(node))
        }
        Some(("bind", list)) => Ok(Placement::Bind(nodes(list)?)),
        Some(("interleave", list)) => Ok(Placement::Interleave(nodes(list)?)),
        _ => Err(format!("{text:?} is not local, preferred:NODE, bind:NODES or interleave:NODES")),
    }
}

/// The bits of `0-3+6`.
fn set_of(text: &str, limit: usize) -> Result<u64, String> {
    let mut bits = 0u64;
    for part in text.split('+') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let ends = first.parse::<usize>().ok().zip(last.parse::<usize>().ok());
        let (first, last) = ends
            .filter(|(first, last)| first <= last && *last < limit.min(64))
            .ok_or_else(|| format!("{part:?} is not a number or a range of numbers below {limit}, such as 0-3"))?;
        bits |= (first..=last).fold(0, |bits, bit| bits | 1 << bit);
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use pagevisor_shared::command::workload::TraceRecord;
    use pagevisor_shared::gfp::Gfp;
    use pagevisor_shared::units::CpuId;

    use super::*;

    fn decoded(text: &str) -> Result<Params, String> {
        text.parse::<Workload>().unwrap().decode()
    }

    #[test]
    fn parameters_are_the_guest_s() {
        let text = "fragment:seed=7,ops=50,cpus=0-1+5,gfp=KERNEL|DMA32,order=9,mix=0:90+3:9,placement=bind:0+2-3,nth=4,\
                    fill=80,hold=100,touch=64,keep=yes";
        let params = decoded(text).unwrap();
        let mut mix = [0; MAX_ORDER];
        (mix[0], mix[3]) = (90, 9);
        let expected = Params {
            seed: 7,
            ops: 50,
            cpus: CpuMask(0b10_0011),
            gfp: Gfp::KERNEL | Gfp::DMA32,
            order: Order::new(9).unwrap(),
            placement: Placement::Bind(NodeMask(0b1101)),
            mix,
            nth: 4,
            fill: 80,
            hold: 100,
            touch: 64,
            keep: true,
            ..Params::new(Kind::Fragment)
        };
        assert_eq!(params, expected);
        let messages = text.parse::<Workload>().unwrap().encode().unwrap();
        let [words] = messages.payloads() else { panic!("{messages:?}") };
        assert_eq!(Params::decode(words[..].try_into().unwrap()), Ok(expected));
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Fragment) {
            assert_eq!(decoded(kind.name()), Ok(Params::new(kind)));
        }
        let node = NodeId::new(1).unwrap();
        assert_eq!(decoded("access:placement=preferred:1").unwrap().placement, Placement::Preferred(node));
        assert_eq!(decoded("access:placement=interleave:0-1").unwrap().placement, Placement::Interleave(NodeMask(3)));
    }

    #[test]
    fn mistakes_are_named_with_their_key() {
        let refused = |text: &str| decoded(text).unwrap_err();
        assert!(refused("sequel").starts_with("there is no workload \"sequel\"; there are boot, sequential, random"));
        assert_eq!(refused("random:size=3"), format!("size: there is no such parameter; there are {KEYS}"));
        assert_eq!(refused("random:order=11"), "order: \"11\" is not an order: that is 0 to 10");
        assert_eq!(refused("random:ops=0"), "ops: 0 is out of range: 1 to 18446744073709551615");
        assert_eq!(refused("random:fill=half"), "fill: \"half\" is not a number");
        assert_eq!(refused("random:touch=65"), "touch: 65 is out of range: 0 to 64");
        let fragment = |text: &str| {
            let params = text.parse::<Workload>().unwrap().decode().unwrap();
            (params.hold, params.keep)
        };
        assert_eq!(fragment("fragment:order=9"), (FRAGMENT_PAGES, true));
        assert_eq!(fragment("fragment:fill=80,keep=no"), (0, false));
        assert_eq!(refused("random:keep=2"), "keep: \"2\" is neither yes nor no");
        assert_eq!(refused("random:mix=0:1+x"), "mix: \"x\" is not ORDER:WEIGHT, such as 3:9");
        assert_eq!(refused("random:mix=0:0"), "mix: all weights are zero");
        assert_eq!(refused("random:gfp=COLONEL"), "gfp: \"COLONEL\" is not GFP flags, such as GFP_KERNEL|__GFP_DMA32");
        let nodes = "is not a number or a range of numbers below 64, such as 0-3";
        assert_eq!(refused("random:placement=bind:3-1"), format!("placement: \"3-1\" {nodes}"));
        assert_eq!(refused("random:cpus=64"), format!("cpus: \"64\" {nodes}"));
        assert_eq!(
            refused("random:placement=far"),
            "placement: \"far\" is not local, preferred:NODE, bind:NODES or interleave:NODES"
        );
        let fault = decoded("fault:kind=cow-reuse,pages=4096").unwrap();
        assert_eq!(fault, Params { fault: Touch::CowReuse, hold: 4096, ..Params::new(Kind::Fault) });
        assert_eq!(Params::decode(&fault.encode()), Ok(fault));
        let kinds = "anon, zero, cow, cow-reuse, file, stack, mprotect, file-read, file-write, private-read, \
                     private-write, node-local, node-remote";
        assert_eq!(refused("fault:kind=page"), format!("kind: \"page\" is none of {kinds}"));
        assert_eq!(refused("random:pages=3"), "pages: only a fault has one");
        assert_eq!(refused("random:file=x"), "file: only a replay has one");
        let replay = "replay:file=/nowhere/t".parse::<Workload>().unwrap().encode().unwrap_err();
        assert_eq!(replay, "file: /nowhere/t: No such file or directory (os error 2)");
    }

    #[test]
    fn a_replay_carries_its_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let event = " x-1 [002] d..1. 1.5: mm_page_alloc: page=0 pfn=0x10 order=3 migratetype=0 gfp_flags=GFP_KERNEL\n";
        let free = " x-1 [002] d..1. 1.5: mm_page_free: page=0 pfn=0x10 order=3\n";
        std::fs::write(&path, [event, free].concat()).unwrap();
        let workload: Workload = format!("replay:file={}", path.display()).parse().unwrap();
        let messages = workload.encode().unwrap();
        let (params, records) = messages.payloads()[0].split_at(Params::WORDS);
        assert_eq!(Params::decode(params.try_into().unwrap()).unwrap().records, 2);
        let (order, cpu) = (Order::new(3).unwrap(), CpuId::new(2).unwrap());
        let expected = [TraceRecord::Alloc { cpu, id: 0, order, gfp: Gfp::KERNEL }, TraceRecord::Free { cpu, id: 0 }];
        assert_eq!(records.iter().map(|&word| TraceRecord::decode(word).unwrap()).collect::<Vec<_>>(), expected);
        std::fs::write(&path, event.replace("order=3", "order=11")).unwrap();
        let reason = "line 1: \"11\" is not an order: that is 0 to 10";
        assert_eq!(workload.encode().unwrap_err(), format!("file: {}: {reason}", path.display()));
    }
}
