//! A connection that is cut after so many frames, for tests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use super::frame::HEADER;

/// Passes so many frames on, of both directions, and then cuts.
pub fn relay(
    mut left: u32,
    from: &UnixStream,
    to: &UnixStream,
    count: &Arc<Mutex<u32>>,
) -> Vec<std::thread::JoinHandle<()>> {
    left += 1;
    let pump = |mut from: UnixStream, mut to: UnixStream, count: Arc<Mutex<u32>>| {
        std::thread::spawn(move || {
            let mut frame = || -> std::io::Result<()> {
                let mut header = [0; HEADER];
                from.read_exact(&mut header)?;
                let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
                let mut payload = vec![0; length as usize];
                from.read_exact(&mut payload)?;
                let mut count = count.lock().unwrap();
                *count += 1;
                if *count >= left {
                    return Err(std::io::ErrorKind::ConnectionAborted.into());
                }
                to.write_all(&[&header[..], &payload].concat())
            };
            while frame().is_ok() {}
            from.shutdown(std::net::Shutdown::Both).ok();
            to.shutdown(std::net::Shutdown::Both).ok();
        })
    };
    let copies = (from.try_clone().unwrap(), to.try_clone().unwrap());
    vec![
        pump(copies.0, copies.1, Arc::clone(count)),
        pump(to.try_clone().unwrap(), from.try_clone().unwrap(), Arc::clone(count)),
    ]
}
