//! Programs that go on for long and would show it if anything of them were lost: each prints a number after the other, and
//! the next one only once all of its parts have had a share in it.

#![allow(clippy::disallowed_methods, reason = "the beat between two numbers is part of the deed")]

use std::fs::File;
use std::io::{BufRead, BufReader, Error, Read, Result, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{kernel, say};

/// Between two numbers.
const BEAT: Duration = Duration::from_millis(20);

/// Bytes.
const PAGE: usize = 4096;

/// Counts in memory, up to `last`.
pub fn count(last: u64) -> Result<()> {
    for number in 0..=last {
        say(&number)?;
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// Counts until its output leads to somewhere else than at the beginning, and then says `elsewhere` and ends.
pub fn end_elsewhere() -> Result<()> {
    let place = || std::fs::metadata("/proc/self/fd/1").map(|file| (file.dev(), file.ino()));
    let begun = place()?;
    for number in 0_u64.. {
        if place()? != begun {
            return say(&"elsewhere");
        }
        say(&number)?;
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// Memory of which no two pages are alike, and none compresses to nothing.
fn filled(megabytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut memory = vec![0_u8; megabytes << 20];
    for word in memory.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&(state >> 16).to_le_bytes());
    }
    memory
}

/// Counts while it writes its number to `rate` pages of `megabytes`, one after the other, and finds in each what it wrote there
/// the time before.
pub fn scribble(megabytes: usize, rate: usize) -> Result<()> {
    let mut memory = filled(megabytes);
    memory.chunks_exact_mut(PAGE).for_each(|page| page[..8].fill(0));
    let pages = memory.len() / PAGE;
    let mut expected = vec![0_u64; pages];
    let mut at = 0;
    for number in 0_u64.. {
        for _ in 0..rate {
            let page = &mut memory[at * PAGE..][..8];
            if *page != expected[at].to_le_bytes() {
                return Err(Error::other(format!("page {at} is not as it was written")));
            }
            page.copy_from_slice(&number.to_le_bytes());
            expected[at] = number;
            at = (at + 1) % pages;
        }
        say(&number)?;
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// Counts while it writes to a page for each number that it has never touched, beside a child that has `megabytes` of memory.
pub fn grow_beside(megabytes: usize) -> Result<()> {
    let (mut own, mut childs) = UnixStream::pair()?;
    if kernel::fork()? == 0 {
        drop(own);
        let memory = filled(megabytes);
        childs.write_all(&memory[..1])?;
        // Until the parent is gone.
        return childs.read_exact(&mut [0]);
    }
    drop(childs);
    own.read_exact(&mut [0])?;
    let mut memory = Vec::with_capacity(1 << 26);
    for number in 0_u64.. {
        memory.resize(memory.len() + PAGE, 1_u8);
        say(&number)?;
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// Counts once all of so many threads have counted.
pub fn threads(count: usize) -> Result<()> {
    let counters: Vec<Arc<AtomicU64>> = (0..count).map(|_| Arc::default()).collect();
    for counter in &counters {
        let counter = Arc::clone(counter);
        std::thread::spawn(move || {
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(BEAT / 4);
            }
        });
    }
    let mut seen: Vec<u64> = vec![0; count];
    for number in 0_u64.. {
        for (counter, seen) in counters.iter().zip(&mut seen) {
            let mut now = counter.load(Ordering::Relaxed);
            while now == *seen {
                std::thread::sleep(BEAT / 4);
                now = counter.load(Ordering::Relaxed);
            }
            *seen = now;
        }
        say(&number)?;
    }
    Ok(())
}

/// Counts what has gone round: by a pipe to a child, from there by a UNIX socket to a grandchild, and by another pipe back.
pub fn ring() -> Result<()> {
    let (mut from_parent, mut to_child) = std::io::pipe()?;
    let (mut from_grandchild, mut to_parent) = std::io::pipe()?;
    let (mut one, mut other) = UnixStream::pair()?;
    if kernel::fork()? == 0 {
        if kernel::fork()? == 0 {
            return pass_on(&mut other, &mut to_parent);
        }
        return pass_on(&mut from_parent, &mut one);
    }
    for number in 0_u64.. {
        to_child.write_all(&number.to_le_bytes())?;
        let mut back = [0; 8];
        from_grandchild.read_exact(&mut back)?;
        if back != number.to_le_bytes() {
            return Err(Error::other("another number came back"));
        }
        say(&number)?;
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// Counts beside a child whose name is no text, and which may still gain privileges, while this one gives that up.
pub fn beside_nameless() -> Result<()> {
    let (mut own, mut childs) = UnixStream::pair()?;
    if kernel::fork()? == 0 {
        drop(own);
        std::fs::write("/proc/self/comm", b"\xff")?;
        childs.write_all(&[0])?;
        // Until the parent is gone.
        return childs.read_exact(&mut [0]);
    }
    drop(childs);
    own.read_exact(&mut [0])?;
    kernel::syscall(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0])?;
    count(u64::MAX)
}

fn pass_on(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    let mut bytes = [0; 8];
    loop {
        from.read_exact(&mut bytes)?;
        to.write_all(&bytes)?;
    }
}

/// Answers each line with its number and itself.
pub fn dialogue() -> Result<()> {
    say(&"ready")?;
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        say(&format_args!("{}: {}", number + 1, line?))?;
    }
    Ok(())
}

/// Listens on a port of the loopback interface, and answers each line of one client with its number and itself.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    say(&format_args!("port {}", listener.local_addr()?.port()))?;
    let (client, _) = listener.accept()?;
    let mut answers: TcpStream = client.try_clone()?;
    for (number, line) in BufReader::new(client).lines().enumerate() {
        writeln!(answers, "{}: {}", number + 1, line?)?;
    }
    Ok(())
}

/// Counts for as long as it holds a lock on a file.
pub fn lock(path: &str) -> Result<()> {
    let file = File::create(path)?;
    file.lock()?;
    count(u64::MAX)?;
    file.unlock()
}

/// Counts by way of a file that has another name than the one it was opened by.
pub fn renamed(path: &str) -> Result<()> {
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    std::fs::hard_link(path, format!("{path}.other"))?;
    std::fs::remove_file(path)?;
    for number in 0_u64.. {
        file.rewind()?;
        file.write_all(&number.to_le_bytes())?;
        file.rewind()?;
        let mut back = [0; 8];
        file.read_exact(&mut back)?;
        if back != number.to_le_bytes() {
            return Err(Error::other("another number came back"));
        }
        say(&number)?;
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// Counts, and sends each number to the socket at `path`.
pub fn send(path: &str) -> Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    for number in 0_u64.. {
        socket.send(number.to_string().as_bytes())?;
        say(&number)?;
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// Tells the service manager that it is ready, and then `count` times that it is up. Whether that is heard is not asked, as with
/// sd_notify(3).
pub fn notify(count: usize) -> Result<()> {
    let (socket, manager) = (UnixDatagram::unbound()?, std::env::var_os("NOTIFY_SOCKET").unwrap_or_default());
    socket.send_to(b"READY=1", &manager)?;
    for _ in 0..count {
        socket.send_to(b"STATUS=up", &manager).ok();
    }
    say(&"told")
}

/// Listens on a port of the loopback interface, takes no connection, and counts.
pub fn ignore() -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    say(&format_args!("port {}", listener.local_addr()?.port()))?;
    count(u64::MAX)
}
