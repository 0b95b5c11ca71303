//! What CRIU answers, and what its log says: any bytes are an answer or none.

#![no_main]

use ferry::checkpoint::rpc::Response;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    drop(Response::decode(bytes));
});
