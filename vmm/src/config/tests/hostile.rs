//! Arbitrary text must give a topology or one line of complaint, never a panic.

use proptest::prelude::*;

use super::*;

/// Text out of the words and signs of the vocabulary, which gets deeper into the parsers than random text does.
fn babble() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        prop::sample::select(vec![
            "[[node]]\n",
            "[distance]\n",
            "[latency]\n",
            "bandwidth",
            "node",
            "distance",
            "mem",
            "dma",
            "dma32",
            "normal",
            "range",
            "cpus",
            "\"",
            "=",
            ",",
            "[",
            "]",
            "-",
            "+",
            ":",
            "\n",
            " ",
            "0x",
            "K",
            "M",
            "G",
            "T",
            "{",
            "}",
            ".",
            "#",
            "true",
            "16M",
            "0-64M",
            "\"0:1\"",
            "10",
            "20",
            "64",
            "65",
            "18446744073709551615",
        ])
        .prop_map(str::to_owned),
        any::<u64>().prop_map(|number| number.to_string()),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

fn check(result: Result<Topology, ConfigError>) -> Result<(), TestCaseError> {
    match result {
        Ok(topology) => prop_assert!(topology.validate().is_ok()),
        Err(error) => prop_assert!(!error.origin.is_empty() && !error.reason.is_empty(), "{error}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn files(text in prop_oneof![babble(), any::<String>()]) {
        check(Topology::from_toml(&text, "m.toml"))?;
    }

    #[test]
    fn node_values(text in babble(), more in any::<String>()) {
        let key = |key: &str| format!("{key}={text}");
        for nodes in [vec![text.clone()], vec![key("mem"), key("range"), key("cpus")], vec![more.clone()]] {
            check(resolve(&TopologyArgs { nodes, ..TopologyArgs::default() }))?;
        }
    }

    #[test]
    fn distance_values(from in any::<usize>(), to in 0..3usize, text in babble()) {
        for value in [text.clone(), format!("{from}:{to}=20"), format!("0:1={text}"), format!("{to}:1=20")] {
            check(resolve(&TopologyArgs { distances: vec![value], ..TopologyArgs::default() }))?;
        }
    }
}

#[test]
fn deep_and_long_files_end() {
    let deep = format!("node = {}", "[".repeat(10_000));
    assert!(Topology::from_toml(&deep, "m.toml").is_err());
    let long = "[[node]]\nmem = \"1G\"\n".repeat(20_000);
    let error = Topology::from_toml(&long, "m.toml").unwrap_err();
    assert_eq!(error.to_string(), "m.toml:129: node 64: 20000 nodes are more than the 64 possible");
}
