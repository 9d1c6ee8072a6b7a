//! What a cache is told to be.

/// `SLAB_*` and `CFLGS_*`, with the numbers of Linux 6.1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SlabFlags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bits:literal, $text:literal;)*) => {
        crate::flag_set!(SlabFlags);

impl SlabFlags {
            $($(#[$doc])* pub const $name: Self = Self($bits);)*

            /// All flags with their names.
            pub const NAMES: &[(Self, &'static str)] = &[$((Self::$name, $text)),*];
            const ALL: u32 = 0 $(| $bits)*;
        }
    };
}

flags! {
    /// `SLAB_RED_ZONE`: words before and behind each object tell when somebody writes past it.
    RED_ZONE = 0x400, "RED_ZONE";
    /// `SLAB_POISON`: free objects are filled with a pattern.
    POISON = 0x800, "POISON";
    /// `SLAB_HWCACHE_ALIGN`: objects start at cache lines.
    HWCACHE_ALIGN = 0x2000, "HWCACHE_ALIGN";
    /// `SLAB_CACHE_DMA`: from ZONE_DMA.
    CACHE_DMA = 0x4000, "CACHE_DMA";
    /// `SLAB_CACHE_DMA32`: from ZONE_DMA32.
    CACHE_DMA32 = 0x8000, "CACHE_DMA32";
    /// `SLAB_STORE_USER`: each object carries the address of who last allocated or freed it.
    STORE_USER = 0x1_0000, "STORE_USER";
    /// `SLAB_RECLAIM_ACCOUNT`: its pages can be reclaimed.
    RECLAIM_ACCOUNT = 0x2_0000, "RECLAIM_ACCOUNT";
    /// `SLAB_PANIC`: no such cache, no kernel.
    PANIC = 0x4_0000, "PANIC";
    /// `SLAB_FAILSLAB`: allocations from it may be made to fail also where not those from all caches may.
    FAILSLAB = 0x200_0000, "FAILSLAB";
    /// Each slab is one object from end to end, with nothing beside it, which holds the list while it is free. Not in Linux,
    /// which does nothing special about that.
    WHOLE = 0x800_0000, "WHOLE";
    /// Slabs are never given back, and objects keep their content while they are free; they are zero when they are handed
    /// out for the first time. So what once was a record stays one, and who comes too late finds it free, not something
    /// else. Not in Linux, where `SLAB_TYPESAFE_BY_RCU` does it for a time.
    TYPE_STABLE = 0x1000_0000, "TYPE_STABLE";
    /// The free objects of a slab are linked to one another. Only for the smallest of kmalloc, where a list would take
    /// room that no object holds. Not in Linux, whose other allocator does it for all.
    LINKED = 0x2000_0000, "LINKED";
    /// `CFLGS_OBJFREELIST_SLAB`: a slab's list of free objects lies in one of them.
    OBJFREELIST = 0x4000_0000, "OBJFREELIST_SLAB";
    /// `CFLGS_OFF_SLAB`: a slab's list of free objects lies in memory of its own.
    OFF_SLAB = 0x8000_0000, "OFF_SLAB";
}

impl SlabFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// What a creator may ask for.
    pub const CREATE: Self =
        Self(Self::ALL & !(Self::FAILSLAB.0 | Self::WHOLE.0 | Self::LINKED.0 | Self::OBJFREELIST.0 | Self::OFF_SLAB.0));
    /// Flags that put something beside each object or look at it at every step.
    pub const DEBUG: Self = Self(Self::RED_ZONE.0 | Self::POISON.0 | Self::STORE_USER.0);

    /// The flags in `bits`; `None` if there are others among them.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::ALL == 0 { Some(Self(bits)) } else { None }
    }

    /// The flags among `bits`.
    #[inline(always)]
    pub const fn from_bits_truncate(bits: u32) -> Self {
        Self(bits & Self::ALL)
    }

    /// As a number.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl core::fmt::Debug for SlabFlags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut list = f.debug_set();
        for (flag, name) in Self::NAMES {
            if self.contains(*flag) {
                list.entry(&format_args!("{name}"));
            }
        }
        list.finish()
    }
}
