//! Names for addresses in a kernel, from its ELF's symbol table.

use std::borrow::Cow;
use std::fmt;

use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

use crate::boot::{KernelElf, Segment};
use crate::state::GuestMemory;

/// A function or a variable of a kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Function {
    start: u64,
    end: u64,
    name: String,
}

/// The functions of a kernel by address. Empty for an ELF without symbols, and for anything that is no ELF.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    functions: Vec<Function>,
    /// Variables that each CPU has, by their offsets in its unit.
    percpu: Vec<Function>,
    segments: Vec<Segment>,
}

/// The section of the variables that each CPU has, linked from address 0 on.
const PERCPU_SECTION: &str = ".data..percpu";

impl Symbols {
    /// Reads the symbol table of an ELF.
    pub fn parse(elf: &[u8]) -> Self {
        let Ok(file) = object::File::parse(elf) else { return Self::default() };
        let segments = KernelElf::parse(elf).map(|kernel| kernel.segments().to_vec()).unwrap_or_default();
        let text = file.sections().filter(|section| section.kind() == SectionKind::Text);
        let text: Vec<(u64, u64)> =
            text.map(|section| (section.address(), section.address().saturating_add(section.size()))).collect();
        let mut functions: Vec<Function> = file
            .symbols()
            .filter(|symbol| matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown))
            .filter_map(|symbol| {
                let start = symbol.address();
                let &(_, section_end) = text.iter().find(|(from, to)| (*from..*to).contains(&start))?;
                let name = symbol.name().ok().filter(|name| !name.is_empty())?;
                let end = match symbol.size() {
                    // Assembly often leaves the size out: up to the next symbol, see below.
                    0 => section_end,
                    size => start.saturating_add(size),
                };
                Some(Function { start, end, name: demangle(name).into_owned() })
            })
            .collect();
        functions.sort_by_key(|function| (function.start, function.end));
        functions.dedup_by_key(|function| function.start);
        let starts: Vec<u64> = functions.iter().skip(1).map(|function| function.start).collect();
        for (function, next) in functions.iter_mut().zip(starts) {
            function.end = function.end.min(next);
        }
        Self { functions, percpu: percpu_variables(&file), segments }
    }

    /// The symbols of `elf`, if it is the kernel whose code is in `memory`; none for a guest with another kernel.
    pub fn of_guest(elf: &[u8], memory: &dyn GuestMemory) -> Self {
        let symbols = Self::parse(elf);
        if symbols.is_code_of(elf, memory) { symbols } else { Self::default() }
    }

    /// Whether all code of `elf` is in `memory` where it is loaded.
    fn is_code_of(&self, elf: &[u8], memory: &dyn GuestMemory) -> bool {
        let Ok(file) = object::File::parse(elf) else { return false };
        let mut text = file.sections().filter(|section| section.kind() == SectionKind::Text).peekable();
        text.peek().is_some()
            && text.all(|section| {
                let Ok(code) = section.data() else { return false };
                let loaded = self.segments.iter().find_map(|segment| {
                    let offset = section.address().checked_sub(segment.virtual_start)?;
                    let inside = offset.checked_add(code.len() as u64)? <= segment.physical.size;
                    inside.then(|| segment.physical.start.checked_add(offset)).flatten()
                });
                let mut found = vec![0; code.len()];
                loaded.is_some_and(|at| memory.read(at, &mut found).is_ok()) && found == code
            })
    }

    fn find(&self, address: u64) -> Option<&Function> {
        let after = self.functions.partition_point(|function| function.start <= address);
        self.functions.get(after.checked_sub(1)?).filter(|function| address < function.end)
    }

    /// Where an instruction at `address` is. The address may be a physical one, as it is before the kernel has page
    /// tables.
    pub fn locate(&self, address: u64) -> Location {
        let linked = self.segments.iter().find_map(|segment| {
            let offset =
                address.checked_sub(segment.physical.start).filter(|&offset| offset < segment.physical.size)?;
            segment.virtual_start.checked_add(offset)
        });
        let place = |at: u64| self.find(at).map(|function| (at, function));
        self.location(address, place(address).or_else(|| place(linked?)))
    }

    /// The variable at `offset` of each CPU's unit of the first chunk.
    pub fn percpu(&self, offset: u64) -> Option<Symbol> {
        let variable = self.percpu.iter().rev().find(|variable| (variable.start..variable.end).contains(&offset))?;
        let (start, size) = (variable.start, variable.end - variable.start);
        Some(Symbol { name: variable.name.clone(), offset: offset - start, size })
    }

    /// Where a call that returns to `address` is. The last instruction of a function may be a call that never
    /// returns; its return address is already the next function's.
    pub fn locate_return(&self, address: u64) -> Location {
        self.location(address, self.find(address.wrapping_sub(1)).map(|function| (address, function)))
    }

    fn location(&self, address: u64, found: Option<(u64, &Function)>) -> Location {
        let symbol = found.map(|(at, function)| Symbol {
            name: function.name.clone(),
            offset: at - function.start,
            size: function.end - function.start,
        });
        Location { address, symbol }
    }
}

fn percpu_variables(file: &object::File<'_>) -> Vec<Function> {
    let Some(section) = file.section_by_name(PERCPU_SECTION) else { return Vec::new() };
    let own = file.symbols().filter(|symbol| symbol.section_index() == Some(section.index()) && symbol.size() != 0);
    let variables = own.filter_map(|symbol| {
        let (start, name) = (symbol.address(), symbol.name().ok()?);
        Some(Function { start, end: start.saturating_add(symbol.size()), name: demangle(name).into_owned() })
    });
    let mut variables: Vec<Function> = variables.collect();
    variables.sort_by_key(|variable| (variable.start, variable.end));
    variables
}

fn demangle(name: &str) -> Cow<'_, str> {
    match rustc_demangle::try_demangle(name) {
        // The alternate form leaves the hash out.
        Ok(demangled) => format!("{demangled:#}").into(),
        Err(_) => name.into(),
    }
}

/// A place in a function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Symbol {
    /// The function's name.
    pub name: String,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes of the function.
    pub size: u64,
}

/// An address in a guest, with its name if it has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Location {
    /// The address.
    pub address: u64,
    /// The place in the kernel.
    pub symbol: Option<Symbol>,
}

/// `function+0x12/0x34`, as Linux has it, or the address.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.symbol {
            Some(symbol) => write!(f, "{}+{:#x}/{:#x}", symbol.name, symbol.offset, symbol.size),
            None => write!(f, "{:#018x}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::kernel_elf;

    fn function(start: u64, end: u64) -> Function {
        Function { start, end, name: format!("f{start}") }
    }

    #[test]
    fn an_address_is_in_the_function_that_holds_it() {
        let symbols =
            Symbols { functions: vec![function(10, 20), function(20, 24), function(30, 40)], ..Symbols::default() };
        let name = |location: Location| location.to_string();
        assert_eq!(name(symbols.locate(10)), "f10+0x0/0xa");
        assert_eq!(name(symbols.locate(19)), "f10+0x9/0xa");
        assert_eq!(name(symbols.locate(20)), "f20+0x0/0x4");
        for outside in [0, 9, 24, 29, 40, u64::MAX] {
            assert_eq!(symbols.locate(outside).symbol, None);
        }
        // A call at the very end of f20 returns to an address that is in nothing.
        assert_eq!(name(symbols.locate_return(24)), "f20+0x4/0x4");
        assert_eq!(name(symbols.locate_return(0)), "0x0000000000000000");
    }

    #[test]
    fn the_kernel_that_comes_along_has_names_for_its_code() {
        let symbols = Symbols::parse(kernel_elf());
        let main = symbols.functions.iter().find(|function| function.name == "kernel_main").unwrap();
        assert_eq!(symbols.locate(main.start + 1).symbol.unwrap().name, "kernel_main");
        // Before there are page tables, its addresses are physical ones.
        let segment = symbols.segments.iter().find(|segment| segment.virtual_start <= main.start).unwrap();
        let physical = main.start - segment.virtual_start + segment.physical.start;
        assert_eq!(symbols.locate(physical + 1).symbol.unwrap().name, "kernel_main");
        assert!(symbols.functions.iter().all(|function| !function.name.starts_with("_R")), "names are mangled");
    }

    #[test]
    fn the_kernel_s_per_cpu_variables_have_names() {
        let symbols = Symbols::parse(kernel_elf());
        let first = symbols.percpu(0).expect("there is a variable at the start");
        let again = symbols.percpu(first.size - 1).unwrap();
        assert_eq!((again.name, again.offset, again.size), (first.name, first.size - 1, first.size));
        assert_eq!(symbols.percpu(1 << 30), None);
    }

    #[test]
    fn no_elf_has_no_symbols() {
        for bytes in [&b""[..], b"\x7fELF", &kernel_elf()[..1000]] {
            assert_eq!(Symbols::parse(bytes).locate(0x100_0000).symbol, None);
        }
    }
}
