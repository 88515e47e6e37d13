//! Every target of the fuzzer on its corpus, on what it starts from, and on changes of both: the fuzzer's smoke run, on any
//! compiler. docs/testing.md says how to fuzz for longer.
//!
//! `FEIQIAN_FUZZ_TIMES=100` makes a hundred times as many changes.
//! `FEIQIAN_WRITE_CORPUS=1 cargo test --release -p feiqian-tests --test fuzz_corpus` writes what targets start from.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::fs;

use feiqian_sim::seed::Seed;
use feiqian_tests::fuzz::seeds::{corpus, mutated, seeds};
use feiqian_tests::fuzz::{TARGETS, target};

/// Changes of each input of a target that is quick, and of one that opens a database.
const CHANGES: usize = 30;
const CHANGES_OF_SESSIONS: usize = 1;

fn inputs(name: &str) -> Vec<Vec<u8>> {
    let folder = corpus(name);
    if std::env::var_os("FEIQIAN_WRITE_CORPUS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (number, seed) in seeds(name).into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), seed).unwrap();
        }
    }
    // A new target has nothing kept yet, only what it starts from.
    let kept = fs::read_dir(&folder).into_iter().flatten();
    let mut files: Vec<_> = kept.map(|file| file.unwrap().path()).filter(|file| file.is_file()).collect();
    files.sort();
    let inputs: Vec<_> = files.into_iter().map(|file| fs::read(file).unwrap()).chain(seeds(name)).collect();
    assert!(!inputs.is_empty(), "{name} has nothing to run on");
    inputs
}

fn run(name: &str, changes: usize) {
    let target = target(name).unwrap();
    let inputs = inputs(name);
    let times = std::env::var("FEIQIAN_FUZZ_TIMES").map_or(1, |times| times.parse().unwrap());
    for (number, input) in inputs.iter().enumerate() {
        (target.run)(input);
        let mut seed = Seed::new(number as u64);
        for _ in 0..changes * times {
            let other = seed.pick(&inputs).unwrap().clone();
            let input = mutated(input, &other, &mut seed);
            // The test harness shows this only where the target fails on it.
            println!("{name}: {}", feiqian_protocol::chain::hex(&input));
            (target.run)(&input);
        }
    }
}

macro_rules! targets {
    ($($name:ident: $changes:expr;)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name), $changes);
            }
        )*

        #[test]
        fn every_target_is_here() {
            assert_eq!([$(stringify!($name)),*], TARGETS.map(|target| target.name));
        }
    };
}

targets! {
    accounts: CHANGES;
    campus: CHANGES;
    card: CHANGES;
    centre: CHANGES_OF_SESSIONS;
    chain: CHANGES;
    configuration: CHANGES;
    control: CHANGES;
    document: CHANGES;
    enrolment: CHANGES;
    frame: CHANGES;
    heads: CHANGES;
    history: CHANGES;
    log_file: CHANGES;
    names: CHANGES;
    node: CHANGES_OF_SESSIONS;
    piece: CHANGES;
    record: CHANGES;
    replicas: CHANGES;
    terminal: CHANGES;
}
