//! Deeds that keep a resource busy, so that a test can measure what a limit leaves of it.
//!
//! They say `ready` when what the test is to measure has begun, and go on until they are killed, unless said otherwise.

#![allow(clippy::disallowed_methods, reason = "a load waits until it is killed")]

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::{kernel, say};

/// The unit of direct I/O: a multiple of every device's block.
const BLOCK: usize = 64 << 10;

/// CPU time, as much as there is.
pub fn burn() -> Result<()> {
    say(&"ready")?;
    loop {
        std::hint::black_box(mix(0));
    }
}

/// Makes each of a few system calls so many times, and tells what one took: one that every profile allows, one that a profile
/// decides by its argument, and one that is refused, by the profile or by the kernel. Nanoseconds.
pub fn calls(count: u32) -> Result<()> {
    let timed = |deed: fn()| {
        let began = Instant::now();
        (0..count).for_each(|_| deed());
        began.elapsed().as_secs_f64() * 1e9 / f64::from(count)
    };
    say(&json!({
        "getppid": timed(kernel::call_allowed),
        "personality": timed(kernel::call_with_argument),
        "mount": timed(kernel::call_refused),
    }))
}

/// Works on so many megabytes all the time, and tells every half second how many pages it has been over since the last.
pub fn work(megabytes: usize) -> Result<()> {
    let mut bytes = touched(megabytes);
    say(&"ready")?;
    loop {
        let (began, mut pages) = (Instant::now(), 0u64);
        while began.elapsed() < Duration::from_millis(500) {
            for page in bytes.chunks_mut(4096) {
                page[0] = (mix(u64::from(page[0])) & 0xff) as u8;
                pages += 1;
            }
        }
        say(&json!({"pages": pages, "milliseconds": began.elapsed().as_millis() as u64}))?;
    }
}

fn mix(seed: u64) -> u64 {
    (0..1000u64).fold(seed, |sum, step| sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step))
}

/// Holds so many megabytes of memory and leaves them alone.
pub fn hold(megabytes: usize) -> Result<()> {
    let bytes = touched(megabytes);
    say(&"ready")?;
    wait_forever(&bytes)
}

/// The same content on every page, which the kernel is asked for nothing to make.
pub fn hold_same(megabytes: usize) -> Result<()> {
    let bytes = vec![7u8; megabytes << 20];
    say(&"ready")?;
    wait_forever(&bytes)
}

fn wait_forever(held: &[u8]) -> ! {
    loop {
        std::hint::black_box(held);
        std::thread::park();
    }
}

/// No two pages alike, and none that compresses to nothing.
fn touched(megabytes: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; megabytes << 20];
    for (index, page) in bytes.chunks_mut(4096).enumerate() {
        page[..8].copy_from_slice(&(index as u64 + 1).to_le_bytes());
    }
    bytes
}

/// Reads so many megabytes of a file or device from an offset, so that they stay in the page cache, and leaves them alone.
pub fn cache(path: &str, offset: u64, megabytes: usize) -> Result<()> {
    let mut file = OpenOptions::new().read(true).open(path)?;
    file.seek(SeekFrom::Start(offset << 20))?;
    let mut buffer = vec![0u8; 1 << 20];
    for _ in 0..megabytes {
        file.read_exact(&mut buffer)?;
    }
    say(&"ready")?;
    loop {
        std::thread::park();
    }
}

/// Reads or writes so many megabytes past the page cache, tells how long it took, and ends.
pub fn direct(how: &str, path: &str, megabytes: usize) -> Result<()> {
    let writes = match how {
        "read" => false,
        "write" => true,
        _ => return Err(Error::new(ErrorKind::InvalidInput, "it is read or write")),
    };
    let mut file = OpenOptions::new().read(!writes).write(writes).custom_flags(libc::O_DIRECT).open(path)?;
    // The kernel takes memory for this that begins at a block: a piece of twice the size holds one that does.
    let mut memory = vec![0u8; 2 * BLOCK];
    let first = memory.as_ptr().align_offset(4096);
    let block = &mut memory[first..first + BLOCK];
    let began = Instant::now();
    for _ in 0..(megabytes << 20) / BLOCK {
        if writes { file.write_all(block)? } else { file.read_exact(block)? }
    }
    say(&json!({"seconds": began.elapsed().as_secs_f64()}))
}

/// Sends so many kilobytes over TCP, until the other side says that it has them all.
pub fn transmit(address: &str, kilobytes: usize) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    for _ in 0..kilobytes {
        stream.write_all(&[7; 1 << 10])?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])
}

/// Takes one connection and all it sends, and tells how much that was and how long it took.
pub fn receive(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    say(&"ready")?;
    let (mut stream, _) = listener.accept()?;
    let began = Instant::now();
    let bytes = std::io::copy(&mut stream, &mut std::io::sink())?;
    stream.write_all(&[0])?;
    say(&json!({"bytes": bytes, "seconds": began.elapsed().as_secs_f64()}))
}

/// Every process forks, for ever, until the kernel refuses; that is told once, and then all wait.
pub fn bomb() -> Result<()> {
    say(&"ready")?;
    let own = std::process::id();
    loop {
        if let Err(error) = kernel::fork() {
            if std::process::id() == own {
                say(&json!({"error": error.raw_os_error()}))?;
            }
            loop {
                std::thread::park();
            }
        }
    }
}

/// The first process waits; another forks and ends, and its child does the same, for ever: one that is hard to catch.
pub fn relay() -> Result<()> {
    if kernel::fork()? == 0 {
        loop {
            match kernel::fork() {
                Ok(0) => {}
                // The child goes on.
                Ok(_) => std::process::exit(0),
                Err(_) => std::thread::yield_now(),
            }
        }
    }
    kernel::ignore_children()?;
    say(&"ready")?;
    loop {
        std::thread::park();
    }
}
