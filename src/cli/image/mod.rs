//! `ferry image`: one file a verb. The rows are `ferry`'s, so that it knows their flags and their help; what they do is linked
//! into `ferry-image` alone, which [`delegate`] executes.

use super::family::Family;

mod check;
mod commit;
pub(super) mod delegate;
mod destination;
mod diff;
mod export;
mod history;
mod import;
mod inspect;
mod list;
mod mount;
pub mod program;
mod progress;
mod prune;
mod pull;
mod remove;
mod tag;

/// The row of `image`.
pub const FAMILY: Family = Family {
    name: "image",
    about: "Bring images into the store and manage them",
    details: &[(
        "DESCRIPTION",
        "Images are kept in a store, /var/lib/ferry for root, $XDG_DATA_HOME/ferry or ~/.local/share/ferry for an ordinary \
         user, or where --store before the command says. Each layer is unpacked once and shared by all containers that \
         `ferry run --image` makes. An image is called by its name, or by the first digits of its manifest's digest.",
    )],
    verbs: &[
        import::VERB,
        pull::VERB,
        list::VERB,
        inspect::VERB,
        history::VERB,
        tag::VERB,
        remove::VERB,
        export::VERB,
        diff::VERB,
        commit::VERB,
        mount::VERB,
        mount::UNMOUNT,
        prune::VERB,
        check::VERB,
    ],
};
