//! Small texts.

use std::time::Duration;

/// A time as people say it: `850 ms`, `12.3 s`, `5m07s`, `2h05m`.
pub(super) fn duration(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{}.{} s", time.as_secs(), time.subsec_millis() / 100),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let text = |millis| duration(Duration::from_millis(millis));
        assert_eq!(text(850), "850 ms");
        assert_eq!(text(12_345), "12.3 s");
        assert_eq!(text(307_000), "5m07s");
        assert_eq!(text(7_500_000), "2h05m");
    }
}
