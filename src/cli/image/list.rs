//! `ferry image list`.

use clap::ArgMatches;

use super::delegate;
use crate::cli::globals::Globals;
use crate::cli::list::FORMAT;
use crate::cli::verb::{Arguments, Flag, Verb};
use crate::cli::{given, output, size};
use crate::error::Result;
use crate::lifecycle::image::list::{self, Row};

/// The row of `image list`.
pub const VERB: Verb = Verb {
    name: "image list",
    about: "List the images in the store",
    arguments: Arguments::NONE,
    flags: &[FORMAT, Flag { long: "quiet", short: Some('q'), help: "Print names only", ..Flag::SWITCH }],
    details: &[
        ("DESCRIPTION", "Lists every name with the image it is of. SIZE is that of the layers as they came."),
        ("EXIT STATUS", "0, or 1 when the store cannot be read."),
        ("EXAMPLES", "    ferry image list\n    ferry image list --format json"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// The store cannot be read.
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "table")?;
    let rows = list::list(&globals.setting)?;
    if given::switch(matches, "quiet") {
        output::print(&rows.iter().map(|row| format!("{}\n", row.name)).collect::<String>())?;
    } else if json {
        output::print_line(&rows)?;
    } else {
        output::print(&table(&rows))?;
    }
    Ok(0)
}

fn table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let digest = row.digest.split(':').next_back().unwrap_or_default().chars().take(12).collect();
        [
            row.name.clone(),
            digest,
            row.platform.clone(),
            row.layers.to_string(),
            size::text(row.size),
            row.created.clone(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    output::table(["NAME", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "CREATED"], &rows)
}
