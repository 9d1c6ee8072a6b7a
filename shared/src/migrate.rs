//! Migrate types, the mobility classes of page blocks.

/// Migrate types with Linux 6.1's numbers (`enum migratetype`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum MigrateType {
    /// Pages that stay where they are.
    Unmovable = 0,
    /// Pages whose content can be moved.
    Movable = 1,
    /// Pages that can be freed on demand.
    Reclaimable = 2,
    /// Reserve for high-order atomic allocations.
    HighAtomic = 3,
    /// Contiguous memory area, lent to movable pages.
    Cma = 4,
    /// Block that is being isolated: nothing is allocated from it.
    Isolate = 5,
}

/// Number of migrate types (`MIGRATE_TYPES`).
pub const MIGRATE_TYPES: usize = 6;
/// Migrate types that have per-CPU lists: the first three (`MIGRATE_PCPTYPES`).
pub const MIGRATE_PCPTYPES: usize = 3;

impl MigrateType {
    /// All migrate types.
    pub const ALL: [Self; MIGRATE_TYPES] =
        [Self::Unmovable, Self::Movable, Self::Reclaimable, Self::HighAtomic, Self::Cma, Self::Isolate];

    /// The migrate type numbered `raw`.
    pub const fn new(raw: usize) -> Option<Self> {
        if raw < MIGRATE_TYPES { Some(Self::ALL[raw]) } else { None }
    }

    /// The type as an index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Linux's name (`migratetype_names`).
    pub const fn name(self) -> &'static str {
        ["Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate"][self as usize]
    }

    /// The letter in the free-area lines of Mem-Info (`show_migration_types`).
    pub const fn letter(self) -> char {
        ['U', 'M', 'E', 'H', 'C', 'I'][self as usize]
    }

    /// The type of a page block from its byte in the page-block table. The byte holds the number XOR 1, so that
    /// zero, the content of fresh memory, means [`MigrateType::Movable`], what Linux's boot writes to every block.
    /// An unknown byte reads as `Movable`; [`Self::decode_block`] tells.
    #[inline(always)]
    pub const fn of_block(byte: u8) -> Self {
        match Self::decode_block(byte) {
            Some(kind) => kind,
            None => Self::Movable,
        }
    }

    /// As [`Self::of_block`], `None` for a byte that no type has.
    pub const fn decode_block(byte: u8) -> Option<Self> {
        Self::new((byte ^ 1) as usize)
    }

    /// The byte that stands for this type in the page-block table.
    #[inline(always)]
    pub const fn block_byte(self) -> u8 {
        self as u8 ^ 1
    }
}
