//! `ferry image history`.

use clap::ArgMatches;
use serde_json::json;

use super::delegate;
use super::inspect::IMAGE;
use crate::cli::globals::Globals;
use crate::cli::list::FORMAT;
use crate::cli::verb::Verb;
use crate::cli::{given, output, size};
use crate::error::Result;
use crate::lifecycle::image::list;

/// The row of `image history`.
pub const VERB: Verb = Verb {
    name: "image history",
    about: "Show how an image was made, the last step first",
    arguments: IMAGE,
    flags: &[FORMAT],
    details: &[
        ("DESCRIPTION", "Prints the steps that the image's configuration tells of, with the size of each one's layer."),
        ("EXIT STATUS", "0, or 1 when there is no such image."),
        ("EXAMPLES", "    ferry image history debian:12"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// There is no such image.
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let steps = list::history(&globals.setting, &given::id(matches)?)?;
    if output::is_json(given::text(matches, "format"), "table")? {
        let rows: Vec<_> = steps.iter().map(|(step, size)| json!({"step": step, "size": size})).collect();
        output::print_line(&rows)?;
        return Ok(0);
    }
    let row = |(step, bytes): &(crate::image::manifest::History, Option<u64>)| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        [text(&step.created), bytes.map_or_else(|| "-".to_owned(), size::text), text(&step.created_by)]
    };
    let rows: Vec<_> = steps.iter().map(row).collect();
    output::print(&output::table(["CREATED", "SIZE", "BY"], &rows))?;
    Ok(0)
}
