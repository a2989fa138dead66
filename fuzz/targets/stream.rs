#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nelly_fuzz::stream::run(data));
