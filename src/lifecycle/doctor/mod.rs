//! `doctor`: what this host lets containers do, one finding a line, each with the way out where something is wrong.
//!
//! What can be tried cheaply is tried, in a child that ends at once, because version numbers lie: kernels carry patches
//! back, and policies forbid what the kernel could do. Nothing outlives a trial.

mod attempt;
mod cgroup;
mod kernel;
mod mounts;
mod programs;
mod security;
mod users;

use serde::Serialize;
use serde_json::json;

use super::{Report, Setting};
use crate::error::{Error, Result};
use crate::host;

/// How good or bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It works.
    Ok,
    /// It works in part, or what cannot be done is seldom needed.
    Warning,
    /// It does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How good or bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Whether no container at all can run without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fatal: bool,
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, level: Level::Ok, found: found.into(), fix: None, fatal: false }
    }

    fn warning(subject: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warning, fix: Some(fix.into()), ..Self::ok(subject, found) }
    }

    fn missing(subject: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Missing, fix: Some(fix.into()), ..Self::ok(subject, found) }
    }

    /// Nothing runs without it, when it is missing.
    fn needed(self) -> Self {
        Self { fatal: self.level == Level::Missing, ..self }
    }
}

/// What was found out about a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosis {
    /// The findings.
    pub report: Report,
    /// Whether this user can run containers here at all.
    pub can_run: bool,
}

/// Looks at the host, as this user.
///
/// # Errors
/// None in practice: what cannot be looked at is a finding.
pub fn doctor(setting: &Setting) -> Result<Diagnosis> {
    let host = host::probe();
    let parts = [
        kernel::findings(),
        users::findings(&host),
        mounts::findings(&host),
        cgroup::findings(&host)?,
        security::findings(),
        programs::findings(&setting.root),
    ];
    diagnose(&parts.concat())
}

fn diagnose(findings: &[Finding]) -> Result<Diagnosis> {
    let can_run = !findings.iter().any(|finding| finding.fatal);
    let list = serde_json::to_value(findings);
    let list = list.map_err(|why| Error::said("write the findings as", "JSON", why.to_string()))?;
    let json = json!({ "containers": can_run, "findings": list });
    Ok(Diagnosis { report: Report { json, text: text(findings, can_run) }, can_run })
}

fn text(findings: &[Finding], can_run: bool) -> String {
    let width = findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { subject, level, found, fix, .. } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Missing => "missing",
        };
        text += &format!("{level:<8} {subject:<width$}  {found}");
        if let Some(fix) = fix {
            text += &format!("; fix: {fix}");
        }
        text.push('\n');
    }
    text += if can_run { "\nContainers can run here.\n" } else { "\nContainers cannot run here.\n" };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nothing_runs_without_says_no() {
        let fine = Finding::ok("kernel", "Linux 6.1.0").needed();
        let lacking = Finding::missing("overlayfs", "not in this kernel", "load the module overlay");
        let diagnosis = diagnose(&[fine.clone(), lacking.clone()]).unwrap();
        assert!(diagnosis.can_run);
        assert_eq!(
            diagnosis.report.text,
            "ok       kernel     Linux 6.1.0\n\
             missing  overlayfs  not in this kernel; fix: load the module overlay\n\n\
             Containers can run here.\n"
        );
        let diagnosis = diagnose(&[fine, lacking.needed()]).unwrap();
        assert!(!diagnosis.can_run && diagnosis.report.text.ends_with("Containers cannot run here.\n"));
        assert_eq!(
            diagnosis.report.json["findings"][1],
            json!({"subject": "overlayfs", "level": "missing", "found": "not in this kernel",
                   "fix": "load the module overlay", "fatal": true})
        );
    }
}
