//! How crash fits text into a column.

/// Where the text stands in its column.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::report) enum Just {
    /// At the left.
    Left,
    /// At the right.
    Right,
    /// In the middle; one place further left if that cannot be.
    Center,
    /// In the middle; one place further right if that cannot be.
    CenterRight,
}

/// `text` in a column of `size` places; longer text is left as it is.
pub(in crate::report) fn just(text: &str, size: usize, just: Just) -> String {
    let extra = size.saturating_sub(text.len());
    let left = match just {
        Just::Left => 0,
        Just::Right => extra,
        Just::Center => extra / 2,
        Just::CenterRight => extra.div_ceil(2),
    };
    format!("{:left$}{text}{:right$}", "", "", right = extra - left)
}

/// A hexadecimal number in a column.
pub(in crate::report) fn hex(number: u64, size: usize, place: Just) -> String {
    just(&format!("{number:x}"), size, place)
}

/// A decimal number in a column.
pub(in crate::report) fn dec(number: u64, size: usize, place: Just) -> String {
    just(&number.to_string(), size, place)
}
