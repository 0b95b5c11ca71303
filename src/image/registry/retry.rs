//! Answers that mean "later": 429 to those who ask too often, and 502 to 504 from what stands before a registry.

use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use ureq::Body;
use ureq::http::{HeaderValue, Response, StatusCode, header};

use super::client::Failure;

/// How long is waited where the server does not say, the first time and the next ones. Seconds.
const USUAL: [u64; 3] = [1, 2, 4];
/// How long is waited for one answer, all in all. Seconds.
const LONGEST: u64 = 60;

/// Whether such an answer may be another one later.
pub fn passes(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502..=504)
}

/// Asks, and asks again when the server wishes, a few times.
pub fn patiently(ask: impl Fn() -> Result<Response<Body>, Failure>) -> Result<Response<Body>, Failure> {
    let mut waited = 0;
    for usual in USUAL {
        let answer = ask()?;
        let Some(pause) = pause(&answer, usual, waited) else { return Ok(answer) };
        waited += pause;
        drop(answer);
        // A signal ends the program, or the pause.
        poll(&mut [], PollTimeout::try_from(Duration::from_secs(pause)).unwrap_or(PollTimeout::ZERO)).ok();
    }
    ask()
}

/// The seconds until it is worth asking again. A date in place of them (RFC 9110, 10.2.3) no registry sends.
fn pause<T>(answer: &Response<T>, usual: u64, waited: u64) -> Option<u64> {
    let said = |value: &HeaderValue| value.to_str().ok()?.trim().parse().ok();
    let pause = answer.headers().get(header::RETRY_AFTER).and_then(said).unwrap_or(usual);
    (passes(answer.status()) && pause.saturating_add(waited) <= LONGEST).then_some(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_how_long_within_limits() {
        let answered = |status: u16, said: &str| {
            let answer = Response::builder().status(status);
            if said.is_empty() { answer } else { answer.header(header::RETRY_AFTER, said) }.body(()).unwrap()
        };
        for status in [429, 502, 503, 504] {
            assert_eq!(pause(&answered(status, ""), 2, 0), Some(2), "{status}");
            assert_eq!(pause(&answered(status, "30"), 2, 30), Some(30), "{status}");
            assert_eq!(pause(&answered(status, "30"), 2, 31), None, "{status}");
            assert_eq!(pause(&answered(status, "18446744073709551615"), 2, 1), None, "{status}");
            assert_eq!(pause(&answered(status, "soon"), 4, 0), Some(4), "{status}");
        }
        for status in [200, 206, 307, 400, 401, 403, 404, 500, 501] {
            assert_eq!(pause(&answered(status, "1"), 1, 0), None, "{status}");
        }
    }
}
