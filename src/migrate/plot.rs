//! A report's rounds as a picture: for each the pages and files that were to be sent and the bytes that went, over the time it took.

use std::fmt::Write;

use super::report::{Report, size, time};
use super::rounds::Round;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 360.0;
/// Room for words around the drawing.
const MARGIN: f64 = 60.0;

/// An SVG document.
pub fn svg(report: &Report) -> String {
    let rounds = &report.rounds;
    let took = |round: &Round| round.dump.saturating_add(round.send).max(1) as f64;
    let total: f64 = rounds.iter().map(took).sum::<f64>().max(1.0);
    let most = rounds.iter().map(|round| round.carried().max(round.sent)).max().unwrap_or(0).max(1) as f64;
    let (wide, high) = (WIDTH - 2.0 * MARGIN, HEIGHT - 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">{}</text>\n\
         <text x=\"{MARGIN}\" y=\"42\">stood still {}, in all {}, {} sent for {} of pages</text>\n",
        escaped(&format!("{} to {}", report.id, report.host)),
        time(report.downtime),
        time(report.total),
        size(report.bytes.sent),
        size(report.bytes.pages),
    );
    let mut left = MARGIN;
    for (number, round) in (1..).zip(rounds) {
        let width = took(round) / total * wide;
        let dump = width * round.dump as f64 / took(round);
        let last = number == rounds.len();
        bar(&mut out, (left, width), round.carried() as f64 / most * high, if last { "#e8b4a8" } else { "#b8cde6" });
        bar(
            &mut out,
            (left + dump, width - dump),
            round.sent as f64 / most * high,
            if last { "#b5422a" } else { "#2f6096" },
        );
        let middle = left + width / 2.0;
        let label = if last { "stopped".to_owned() } else { number.to_string() };
        let foot = HEIGHT - MARGIN;
        // Writing to a text does not fail.
        write!(
            out,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n\
             <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{}</text>\n",
            foot + 16.0,
            foot + 32.0,
            time(round.dump.saturating_add(round.send)),
        )
        .ok();
        left += width;
    }
    write!(
        out,
        "<text x=\"8\" y=\"{:.1}\">{}</text>\n<text x=\"8\" y=\"{:.1}\">0</text>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">pale: pages and files written to; full: bytes sent</text>\n</svg>\n",
        MARGIN + 10.0,
        size(most as u64),
        HEIGHT - MARGIN,
        WIDTH - MARGIN,
        HEIGHT - 8.0,
    )
    .ok();
    out
}

fn bar(out: &mut String, (left, width): (f64, f64), height: f64, color: &str) {
    let top = HEIGHT - MARGIN - height;
    writeln!(
        out,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{color}\"/>",
        (width - 1.0).max(0.5)
    )
    .ok();
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn every_round_is_drawn_within_the_picture() {
        let picture = svg(&sample());
        assert_eq!(picture.matches("<rect").count(), 1 + 2 * 2);
        assert!(picture.contains(">1</text>") && picture.contains(">stopped</text>") && picture.contains("950 ms"));
        for value in picture.split("height=\"").skip(1) {
            let height: f64 = value.split('"').next().unwrap().parse().unwrap();
            assert!((0.0..=HEIGHT).contains(&height), "{height}");
        }
    }

    #[test]
    fn a_report_is_any_file() {
        let report = Report { id: "<script>".into(), ..Report::default() };
        let picture = svg(&report);
        assert!(picture.contains("&lt;script&gt;") && picture.ends_with("</svg>\n"));
        let most = Round { pages: u64::MAX, sent: u64::MAX, dump: u64::MAX, send: u64::MAX, files: u64::MAX };
        assert!(!svg(&Report { rounds: vec![most; 2], ..Report::default() }).contains("NaN"));
    }
}
