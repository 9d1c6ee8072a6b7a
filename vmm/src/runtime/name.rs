//! Names of running guests.

use std::fmt;
use std::str::FromStr;

/// The name of a running guest. It is part of a file name, so it is short and of harmless characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GuestName(String);

/// Why a text is not a guest's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadName {
    /// Nothing.
    #[error("a guest's name cannot be empty")]
    Empty,
    /// More than [`GuestName::MAX`] bytes.
    #[error("a guest's name has at most {} characters", GuestName::MAX)]
    TooLong,
    /// A first character that reads as an option or hides the file.
    #[error("a guest's name cannot start with '{0}'")]
    First(char),
    /// A character that is not allowed.
    #[error("a guest's name is made of letters, digits, '_', '.' and '-', not {0:?}")]
    Character(char),
}

impl GuestName {
    /// Most characters in a name.
    pub const MAX: usize = 64;

    /// A name for a guest that was given none; unique among running guests, since process numbers are.
    pub fn of_process(pid: u32) -> Self {
        Self(format!("pv-{pid}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GuestName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        match text.chars().next() {
            None => return Err(BadName::Empty),
            Some(first @ ('.' | '-')) => return Err(BadName::First(first)),
            Some(_) => {}
        }
        if let Some(bad) = text.chars().find(|&c| !allowed(c)) {
            return Err(BadName::Character(bad));
        }
        if text.len() > Self::MAX {
            return Err(BadName::TooLong);
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_harmless_file_names() {
        for good in ["ring", "a", "Two-Nodes_2.1", "0", &"x".repeat(GuestName::MAX)] {
            assert_eq!(good.parse::<GuestName>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<GuestName>(), Err(BadName::Empty));
        assert_eq!("..".parse::<GuestName>(), Err(BadName::First('.')));
        assert_eq!("-f".parse::<GuestName>(), Err(BadName::First('-')));
        assert_eq!("a/b".parse::<GuestName>(), Err(BadName::Character('/')));
        assert_eq!("a b".parse::<GuestName>(), Err(BadName::Character(' ')));
        assert_eq!("a\n".parse::<GuestName>(), Err(BadName::Character('\n')));
        assert_eq!("knö".parse::<GuestName>(), Err(BadName::Character('ö')));
        assert_eq!("x".repeat(GuestName::MAX + 1).parse::<GuestName>(), Err(BadName::TooLong));
    }
}
