#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| feiqian_tests::fuzz::card::card(data));
