#![no_main]

use feiqian_tests::fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::let_caught_panics_pass();
    fuzz::documents::document(data)
});
