#![no_main]

use std::sync::Once;

static BEGIN: Once = Once::new();

// libFuzzer's hook ends the process at every panic; here those in the library that reads documents are errors of what was
// read. What this target itself finds wrong still ends it.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    BEGIN.call_once(|| drop(std::panic::take_hook()));
    feiqian_tests::fuzz::documents::document(data)
});
