//! GFP flags: what an allocation may do and where it may come from.
//!
//! Names and bits are those of `include/linux/gfp_types.h` of Linux 6.1, since users see the bits in reports
//! (`mode:0x200cc0(GFP_KERNEL|__GFP_THISNODE)`).

use core::fmt;

use crate::migrate::MigrateType;
use crate::zone::ZoneType;

/// Single flags; see [`FLAGS`] for their printed names.
macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        crate::flag_set!(Gfp);

impl Gfp {
            $($(#[$doc])* pub const $name: Self = Self($bit);)*
        }

        /// Every single flag with Linux's printed name (`__def_gfpflag_names`), lowest bit first.
        pub const FLAGS: &[(Gfp, &str)] = &[$((Gfp::$name, concat!("__GFP_", stringify!($name)))),*];
    };
}

/// A set of GFP flags (`gfp_t`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Gfp(u32);

flags! {
    /// From ZONE_DMA.
    DMA = 0x1;
    /// High memory allowed; there is none on x86-64.
    HIGHMEM = 0x2;
    /// From ZONE_DMA32 or below.
    DMA32 = 0x4;
    /// The content can be moved.
    MOVABLE = 0x8;
    /// The pages can be freed on demand.
    RECLAIMABLE = 0x10;
    /// May use part of the reserve below the min watermark.
    HIGH = 0x20;
    /// May start physical I/O.
    IO = 0x40;
    /// May call into a file system.
    FS = 0x80;
    /// The memory is to be zero.
    ZERO = 0x100;
    /// Cannot sleep and has high priority.
    ATOMIC = 0x200;
    /// May reclaim itself.
    DIRECT_RECLAIM = 0x400;
    /// May wake kswapd.
    KSWAPD_RECLAIM = 0x800;
    /// The page will be dirtied.
    WRITE = 0x1000;
    /// No report when it fails.
    NOWARN = 0x2000;
    /// Tries hard, may fail.
    RETRY_MAYFAIL = 0x4000;
    /// Must not fail.
    NOFAIL = 0x8000;
    /// Tries once.
    NORETRY = 0x10000;
    /// May use all reserves.
    MEMALLOC = 0x20000;
    /// Makes a compound page.
    COMP = 0x40000;
    /// Must not use the reserves.
    NOMEMALLOC = 0x80000;
    /// Keeps to the cpuset of the task.
    HARDWALL = 0x100000;
    /// From the named node or not at all.
    THISNODE = 0x200000;
    /// Charged to a memory control group.
    ACCOUNT = 0x400000;
}

/// All bits that have a meaning.
const KNOWN: u32 = (1 << 23) - 1;

impl Gfp {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// `__GFP_RECLAIM`: both kinds of reclaim.
    pub const RECLAIM: Self = Self(Self::DIRECT_RECLAIM.0 | Self::KSWAPD_RECLAIM.0);
    /// `GFP_ATOMIC`.
    pub const ATOMIC_ALLOC: Self = Self(Self::HIGH.0 | Self::ATOMIC.0 | Self::KSWAPD_RECLAIM.0);
    /// `GFP_KERNEL`.
    pub const KERNEL: Self = Self(Self::RECLAIM.0 | Self::IO.0 | Self::FS.0);
    /// `GFP_RECLAIM_MASK`: how hard an allocation may try, which holds for what it needs beside its own pages too.
    pub const RECLAIM_MASK: Self = Self::KERNEL
        .with(Self::HIGH)
        .with(Self::NOWARN)
        .with(Self::RETRY_MAYFAIL)
        .with(Self::NOFAIL)
        .with(Self::NORETRY)
        .with(Self::MEMALLOC)
        .with(Self::NOMEMALLOC)
        .with(Self::ATOMIC);
    /// `GFP_KERNEL_ACCOUNT`.
    pub const KERNEL_ACCOUNT: Self = Self(Self::KERNEL.0 | Self::ACCOUNT.0);
    /// `GFP_NOWAIT`.
    pub const NOWAIT: Self = Self::KSWAPD_RECLAIM;
    /// `GFP_NOIO`.
    pub const NOIO: Self = Self::RECLAIM;
    /// `GFP_NOFS`.
    pub const NOFS: Self = Self(Self::RECLAIM.0 | Self::IO.0);
    /// `GFP_USER`.
    pub const USER: Self = Self(Self::KERNEL.0 | Self::HARDWALL.0);
    /// `GFP_HIGHUSER`.
    pub const HIGHUSER: Self = Self(Self::USER.0 | Self::HIGHMEM.0);
    /// `GFP_HIGHUSER_MOVABLE`.
    pub const HIGHUSER_MOVABLE: Self = Self(Self::HIGHUSER.0 | Self::MOVABLE.0);
    /// `GFP_TRANSHUGE_LIGHT`.
    pub const TRANSHUGE_LIGHT: Self =
        Self((Self::HIGHUSER_MOVABLE.0 | Self::COMP.0 | Self::NOMEMALLOC.0 | Self::NOWARN.0) & !Self::RECLAIM.0);
    /// `GFP_TRANSHUGE`.
    pub const TRANSHUGE: Self = Self(Self::TRANSHUGE_LIGHT.0 | Self::DIRECT_RECLAIM.0);

    /// The flags in `raw`, or `None` when a bit has no meaning.
    pub const fn from_bits(raw: u32) -> Option<Self> {
        if raw & !KNOWN == 0 { Some(Self(raw)) } else { None }
    }

    /// The bits.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The highest zone the allocation may come from (`gfp_zone`, `GFP_ZONE_TABLE`). Combinations that Linux calls
    /// bad give the lowest zone they name.
    #[inline(always)]
    pub const fn zone(self) -> ZoneType {
        // Two bits per combination of the four zone modifiers (DMA 1, HIGHMEM 2, DMA32 4, MOVABLE 8): the table
        // of Linux, as a word so that a lookup is a shift. x86-64 has no HIGHMEM: it maps to Normal.
        const TABLE: u32 = {
            let mut table = 0u32;
            let mut flags = 0;
            while flags < 16 {
                let zone = if flags & 1 != 0 {
                    0
                } else if flags & 4 != 0 {
                    1
                } else if flags & 0xa == 0xa {
                    3
                } else {
                    2
                };
                table |= zone << (2 * flags);
                flags += 1;
            }
            table
        };
        match TABLE >> (2 * (self.0 & 0xf)) & 3 {
            0 => ZoneType::Dma,
            1 => ZoneType::Dma32,
            2 => ZoneType::Normal,
            _ => ZoneType::Movable,
        }
    }

    /// The migrate type of the allocation (`gfp_migratetype`): both mobility flags together are a mistake of the
    /// caller and count as `Reclaimable`.
    #[inline(always)]
    pub const fn migratetype(self) -> MigrateType {
        match self.0 >> 3 & 3 {
            0 => MigrateType::Unmovable,
            1 => MigrateType::Movable,
            _ => MigrateType::Reclaimable,
        }
    }
}

impl core::ops::BitOr for Gfp {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

/// Composite names, tried before single flags and largest first, as `__def_gfpflag_names` lists them.
const COMPOSITES: &[(Gfp, &str)] = &[
    (Gfp::TRANSHUGE, "GFP_TRANSHUGE"),
    (Gfp::TRANSHUGE_LIGHT, "GFP_TRANSHUGE_LIGHT"),
    (Gfp::HIGHUSER_MOVABLE, "GFP_HIGHUSER_MOVABLE"),
    (Gfp::HIGHUSER, "GFP_HIGHUSER"),
    (Gfp::USER, "GFP_USER"),
    (Gfp::KERNEL_ACCOUNT, "GFP_KERNEL_ACCOUNT"),
    (Gfp::KERNEL, "GFP_KERNEL"),
    (Gfp::NOFS, "GFP_NOFS"),
    (Gfp::ATOMIC_ALLOC, "GFP_ATOMIC"),
    (Gfp::NOIO, "GFP_NOIO"),
    (Gfp::NOWAIT, "GFP_NOWAIT"),
    (Gfp::DMA, "GFP_DMA"),
    (Gfp::DMA32, "GFP_DMA32"),
];

/// Text that is no set of GFP flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadGfp;

impl fmt::Display for BadGfp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not GFP flags, such as GFP_KERNEL|__GFP_DMA32")
    }
}

impl core::error::Error for BadGfp {}

/// What [`fmt::Display`] prints, and the same without `GFP_` and `__GFP_`; a number is hexadecimal, after `0x`. Of names
/// that a composite and a single flag share, the composite has the one with `GFP_`, as in Linux.
impl core::str::FromStr for Gfp {
    type Err = BadGfp;

    fn from_str(text: &str) -> Result<Self, BadGfp> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        text.split('|').try_fold(Self::NONE, |flags, name| {
            if let Some(hex) = name.strip_prefix("0x") {
                return u32::from_str_radix(hex, 16).map(|bits| flags | Self(bits)).map_err(|_| BadGfp);
            }
            let named = |(_, known): &&(Self, &str)| {
                name == *known || Some(name) == known.strip_prefix("GFP_") || Some(name) == known.strip_prefix("__GFP_")
            };
            COMPOSITES.iter().chain(FLAGS).find(named).map(|(known, _)| flags | *known).ok_or(BadGfp)
        })
    }
}

/// Linux's `%pGg`: `GFP_KERNEL|__GFP_THISNODE`, `none` for no flag.
impl fmt::Display for Gfp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut first = true;
        if rest == Self::NONE {
            return f.write_str("none");
        }
        for (flags, name) in COMPOSITES.iter().chain(FLAGS) {
            if rest.contains(*flags) {
                if !first {
                    f.write_str("|")?;
                }
                f.write_str(name)?;
                first = false;
                rest = rest.without(*flags);
            }
        }
        if rest != Self::NONE {
            write!(f, "{}{:#x}", if first { "" } else { "|" }, rest.0)?;
        }
        Ok(())
    }
}
