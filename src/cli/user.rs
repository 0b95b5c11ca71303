//! Users as numbers: `1000`, `1000:100`.

use crate::error::{Error, Result};

/// User id, and group id if one was given. Names are refused: their meaning stands in the container's own /etc/passwd,
/// which whoever controls the container controls.
///
/// # Errors
/// Not a number, or not one an id can be.
pub fn ids(given: &str) -> Result<(u32, Option<u32>)> {
    let (user, group) = given.split_once(':').map_or((given, None), |(user, group)| (user, Some(group)));
    Ok((id("user", user)?, group.map(|group| id("group", group)).transpose()?))
}

/// 4294967295 is the kernel's "leave it as it is", so it is nobody's id.
fn id(kind: &str, given: &str) -> Result<u32> {
    match given.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::plain(format!("{given:?} is not a {kind} id"))
            .hint("give numbers, UID or UID:GID; `id` inside the container tells a name's numbers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_may_come_with_a_group() {
        assert_eq!(ids("1000").unwrap(), (1000, None));
        assert_eq!(ids("0:0").unwrap(), (0, Some(0)));
        assert_eq!(ids("1000:100").unwrap(), (1000, Some(100)));
    }

    #[test]
    fn names_are_refused_with_a_way_out() {
        let error = ids("root").unwrap_err().to_string();
        assert!(error.starts_with("\"root\" is not a user id (hint: give numbers, UID or UID:GID"), "{error}");
        assert!(ids("0:wheel").unwrap_err().to_string().starts_with("\"wheel\" is not a group id"));
    }

    #[test]
    fn what_can_be_no_id_is_refused() {
        for wrong in ["", ":", "1:", ":1", "-1", "1:2:3", "4294967295", "4294967296", "1.5"] {
            assert!(ids(wrong).is_err(), "{wrong}");
        }
    }
}
