//! The kernel table against the kernels: what was compiled, and what `kernels/` declares.

use super::*;
use crate::device::cuda::compile::images;
use crate::device::cuda::driver::tensor_map::TensorMap;
use crate::device::cuda::ops::branches::MAX_BRANCHES;
use crate::device::cuda::ops::kernel::ParamStruct;
use std::collections::HashMap;

/// Entry points, block sizes and parameter sizes of the table are those of the PTX, and no kernel is missing from it.
#[test]
fn table_of_compiled_entries() {
    if !images::compiled() {
        return;
    }
    let mut found = 0;
    for module in images::modules() {
        let ptx = String::from_utf8(module.ptx((9, 0)).unwrap().unpack().unwrap()).unwrap();
        let mut table: Vec<(String, &Kernel)> = kernels()
            .filter(|kernel| kernel.module == module.name)
            .flat_map(|kernel| kernel.types.each().iter().map(move |&dtype| (kernel.entry(dtype), kernel)))
            .collect();
        for entry in ptx.split(".visible .entry ").skip(1) {
            let name = entry.split('(').next().unwrap().trim();
            let at = table.iter().position(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}"));
            let (_, kernel) = table.swap_remove(at);
            let number = |before: &str| {
                let digits = entry.split(before).nth(1).unwrap_or_else(|| panic!("{name}: {before}"));
                digits.split(|c: char| !c.is_ascii_digit()).find(|d| !d.is_empty()).unwrap().parse::<u32>().unwrap()
            };
            assert_eq!(number("_param_0["), kernel.params as u32, "{name}: bytes of parameters");
            assert_eq!(number(".maxntid"), kernel.threads, "{name}: threads");
            // A block's on sm_86 and sm_89, and on sm_90.
            let most = if kernel.runs_on((8, 6)) { 99 } else { 227 };
            assert!(kernel.shared <= most * 1024, "{name}: a block has {most} KiB");
            found += 1;
        }
        assert!(table.is_empty(), "{}: not compiled: {table:?}", module.name);
    }
    assert_eq!(found, kernels().map(|kernel| kernel.types.each().len()).sum::<usize>());
}

/// The declarations `struct NAME { TYPE FIELD; .. };` of a file, comments dropped.
fn declarations(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let text: String = text.lines().map(|line| line.split("//").next().unwrap_or("").to_owned() + "\n").collect();
    text.split("\nstruct ")
        .skip(1)
        .filter_map(|rest| rest.split_once(" {\n"))
        .map(|(name, rest)| {
            let body = rest.split("\n};").next().unwrap_or("");
            let fields = body.split(';').filter_map(|field| field.trim().rsplit_once(' '));
            (name.to_owned(), fields.map(|(t, f)| (t.trim().to_owned(), f.to_owned())).collect())
        })
        .collect()
}

#[test]
fn parameter_layouts() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut declared = HashMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        declared.extend(declarations(&std::fs::read_to_string(entry.unwrap().path()).unwrap()));
    }
    let structs: Vec<&ParamStruct> = KERNEL_FILES.iter().flat_map(|file| file.structs).collect();
    let sizes: HashMap<&str, usize> = structs.iter().map(|mirror| (mirror.name, mirror.size)).collect();
    for ParamStruct { name, size, fields } in structs {
        let theirs = &declared[*name];
        // C ends a struct with tensor maps at a multiple of their alignment by itself.
        let (fields, align) = match fields.split_last() {
            Some(((_, kind, _), fields)) if kind.starts_with("[i32") => (fields, align_of::<TensorMap>()),
            _ => (*fields, 1),
        };
        assert_eq!(theirs.len(), fields.len(), "{name}: {theirs:?}");
        let mut at = 0;
        for ((kind, declared), (field, ours, offset)) in theirs.iter().zip(fields) {
            let (declared, count) = declared.split_once('[').map_or((declared.as_str(), 1), |(f, _)| (f, MAX_BRANCHES));
            let (rust, bytes) = match kind.as_str() {
                pointer if pointer.ends_with('*') => ("Pointer", 8),
                "i64" => ("i64", 8),
                "int" => ("i32", 4),
                "float" => ("f32", 4),
                "TensorMap" => ("TensorMap", size_of::<TensorMap>()),
                other => (other, sizes[other]),
            };
            let rust = if count > 1 { format!("[{rust}; MAX_BRANCHES]") } else { rust.to_owned() };
            assert_eq!((declared, rust.as_str()), (*field, *ours), "{name}");
            let aligned = if kind == "TensorMap" { align_of::<TensorMap>() } else { bytes.min(8) };
            assert_eq!(at % aligned, 0, "{name}.{field} is not aligned");
            assert_eq!(at, *offset, "{name}.{field}");
            at += bytes * count;
        }
        assert_eq!(at.next_multiple_of(align), *size, "{name}");
    }
    // Every parameter struct of a kernel has its mirror.
    let missing: Vec<&String> =
        declared.keys().filter(|name| name.ends_with("Params") && !sizes.contains_key(name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
