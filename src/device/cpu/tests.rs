//! The CPU's executables, beyond the table of cases in tests/ops.

use super::*;
use crate::graph::Builder;

#[test]
fn wrong_binding() {
    let mut b = Builder::new();
    let x = b.input("x", &[2, 3]);
    let y = b.scale_shift(x, 2.0, 1.0);
    b.output("y", y);
    let mut executable = Cpu::new(Some(1)).compile(b.finish().unwrap()).unwrap();
    let mut out = [0.0; 6];
    let text = executable.run(&[&[0.0; 5]], &mut [&mut out]).unwrap_err().to_string();
    assert!(text.contains("`x` is [2, 3], bound to 5"), "{text}");
    executable.run(&[&[1.0; 6]], &mut [&mut out]).unwrap();
    assert_eq!(out, [3.0; 6]);
}
