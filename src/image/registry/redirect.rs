//! Where an answer leads: blobs are often kept by another server, to which the registry sends its callers.
//!
//! The steps are taken here and not by the HTTP library, since each decides who learns what: the authorization is for the
//! registry's own origin (RFC 6454), and what another server demands is not the registry's word.

use ureq::http::uri::Scheme;
use ureq::http::{HeaderValue, StatusCode, Uri};

/// The most steps that are taken for one answer. Registries need one or two.
pub const MOST: u32 = 10;

/// Whether the answer is elsewhere.
pub fn leads(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether both are the same server's: scheme, host and port.
pub fn same_origin(one: &Uri, other: &Uri) -> bool {
    let origin = |uri: &Uri| {
        let scheme = uri.scheme().cloned();
        let standard = if scheme == Some(Scheme::HTTPS) { 443 } else { 80 };
        (scheme, uri.host().map(str::to_ascii_lowercase), uri.port_u16().unwrap_or(standard))
    };
    origin(one) == origin(other)
}

/// The address that `Location` means, seen from the one that answers it.
///
/// # Errors
/// There is none that may be asked: what begins over TLS goes on over TLS.
pub fn target(from: &Uri, location: Option<&HeaderValue>) -> Result<Uri, String> {
    let location =
        location.and_then(|value| value.to_str().ok()).ok_or("it leads elsewhere, and does not say where")?;
    let to = joined(from, location).ok_or("it leads to what is no address")?;
    let safe = to.scheme() == Some(&Scheme::HTTPS);
    if safe || (to.scheme() == Some(&Scheme::HTTP) && from.scheme() == Some(&Scheme::HTTP)) {
        return Ok(to);
    }
    let (scheme, host) = (to.scheme_str().unwrap_or_default(), to.host().unwrap_or_default());
    Err(format!("it leads to {scheme}://{host}, which is no way as safe as the one there"))
}

/// RFC 3986, 5.2, as far as servers use it.
fn joined(from: &Uri, location: &str) -> Option<Uri> {
    let (scheme, server) = (from.scheme_str()?, from.authority()?);
    let whole = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{server}{location}")
    } else if location.split(['/', '?']).next()?.contains(':') {
        location.to_owned()
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{server}{folder}/{location}")
    };
    whole.parse().ok().filter(|uri: &Uri| uri.host().is_some_and(|host| !host.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(from: &str, location: &str) -> Result<String, String> {
        let location = HeaderValue::from_str(location).unwrap();
        target(&from.parse().unwrap(), Some(&location)).map(|uri| uri.to_string())
    }

    #[test]
    fn every_form_of_a_location_is_understood() {
        let from = "https://r.example:5000/v2/a/blobs/x";
        for (location, to) in [
            ("https://cdn.example/b?sig=1:2//3", "https://cdn.example/b?sig=1:2//3"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/b?to=http://c/", "https://r.example:5000/b?to=http://c/"),
            ("b?to=http://c/", "https://r.example:5000/v2/a/blobs/b?to=http://c/"),
        ] {
            assert_eq!(led(from, location).as_deref(), Ok(to), "{location}");
        }
    }

    #[test]
    fn no_step_leaves_http_or_gives_up_tls() {
        for location in
            ["http://r.example/b", "file:///etc/passwd", "ftp://r.example/b", "mailto:a", "https://", "https:///b"]
        {
            assert!(led("https://r.example/v2/a", location).is_err(), "{location}");
        }
        assert!(led("http://r.example/a", "file:///etc/passwd").is_err());
        assert_eq!(led("http://r.example/a", "http://s.example/b").as_deref(), Ok("http://s.example/b"));
        assert_eq!(led("http://r.example/a", "https://s.example/b").as_deref(), Ok("https://s.example/b"));
        assert!(target(&"http://r.example/a".parse().unwrap(), None).is_err());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |one: &str, other: &str| same_origin(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(same("https://r.example/a", "https://R.example:443/b?c"));
        assert!(same("http://[::1]:5000/a", "http://[::1]:5000/b"));
        assert!(!same("https://r.example/a", "http://r.example:443/a"));
        assert!(!same("https://r.example/a", "https://r.example:444/a"));
        assert!(!same("https://r.example/a", "https://r.example.org/a"));
        assert!(!same("https://r.example/a", "https://r.example@evil.example/a"));
    }
}
