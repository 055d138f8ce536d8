//! Lists the kernels of a PTX file: `cargo run -p braid-ptx --example kernels -- FILE...`, with their parameters, their shared
//! memory, and the first instruction that the interpreter does not know.

use braid_ptx::Module;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        let module = Module::parse(&std::fs::read_to_string(&path)?).map_err(|e| format!("{path}: {e}"))?;
        println!("{path}, {}", module.target());
        for kernel in module.kernels() {
            print!("  {}: {} instructions, ", kernel.name(), kernel.instructions());
            print!("{} parameter bytes, {} bytes of shared memory", kernel.param_bytes(), kernel.shared_bytes());
            match kernel.unknown() {
                Some((line, what)) => println!(", unknown at line {line}: {what}"),
                None => println!(),
            }
        }
    }
    Ok(())
}
