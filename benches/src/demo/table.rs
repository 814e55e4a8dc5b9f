//! The demo's last page.

use crate::travel::Row;

pub fn print(rows: &[Row]) {
    println!(
        "{:<10} {:<20} {:>9} {:>9} {:>12} {:>10} {:>5}",
        "policy", "way", "total", "gap", "on the wire", "writes/s", "bad"
    );
    for row in rows {
        println!(
            "{:<10} {:<20} {:>7.2} s {:>6} ms {:>9.1} MB {:>10.0} {:>5}{}",
            row.policy,
            format!("{} → {}", row.from, row.to),
            row.total.as_secs_f64(),
            row.gap.as_millis(),
            row.wire_bytes as f64 / 1e6,
            row.writes_per_s,
            row.bad,
            if row.two_ran { "  TWO GUESTS RAN" } else { "" },
        );
    }
}
