//! The set operations of types of flags, written once.

/// Set operations of `$name`, a tuple struct of one unsigned number whose bits are flags: `contains`, `intersects`, `with`
/// and `without`, all `const`. The crate `bitflags` is not used: its types iterate over, parse and format their flags in ways
/// of its own, where ours print as Linux prints them.
#[macro_export]
macro_rules! flag_set {
    ($name:ident) => {
        impl $name {
            /// Whether all of `other` are among these.
            #[inline(always)]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether any of `other` is among these.
            #[inline(always)]
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// These and `other`.
            #[must_use]
            #[inline(always)]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// These but for `other`.
            #[must_use]
            #[inline(always)]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }
    };
}
