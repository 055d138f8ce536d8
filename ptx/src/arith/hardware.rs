//! Arithmetic as GPUs are known to do it where the PTX manual leaves it open: sums of tensor cores, and approximations.
//!
//! Sources for the sums: Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science
//! 7:e330, 2021; Khattak, Mikaitis, "Accurate models of NVIDIA tensor cores", arXiv:2512.07004, 2025. What is modelled is an
//! A100: products are exact; eight of them (of f16 and bf16; four of tf32) and the accumulator are aligned to the largest
//! exponent among them, which is that of the operands' exponents added, before the product is normalised; what lies below the
//! kept bits is cut off; the aligned numbers are added exactly, and the sum is cut off to f32.

/// Bits kept behind the leading one's place of the largest term: those of f32 and one more.
const FRACTION: i32 = 24;

/// D = A B + C over the first `k` columns and rows as a tensor core sums it, `width` products at a time.
pub(crate) fn multiply(
    a: &[[f32; 16]; 16],
    b: &[[f32; 8]; 16],
    c: &[[f32; 8]; 16],
    k: usize,
    width: usize,
) -> [[f32; 8]; 16] {
    let mut d = *c;
    for (row, sums) in a.iter().zip(&mut d) {
        for first in (0..k).step_by(width) {
            let block = first..first + width;
            *sums = block_sums(&row[block.clone()], &b[block], sums);
        }
    }
    d
}

/// Adds the products of a row with eight columns to their sums, all of a column in one addition.
fn block_sums(row: &[f32], columns: &[[f32; 8]], sums: &[f32; 8]) -> [f32; 8] {
    let mut largest = sums.map(power);
    for (x, line) in row.iter().zip(columns) {
        let x = power(*x);
        for (largest, y) in largest.iter_mut().zip(line) {
            let both = x * power(*y);
            *largest = if both > *largest { both } else { *largest };
        }
    }
    if largest.iter().any(|l| !l.is_finite()) || row.iter().chain(columns.iter().flatten()).any(|v| !v.is_finite()) {
        return special(row, columns, sums);
    }
    let one = f64::from(FRACTION).exp2();
    // Where all terms are zero, any unit will do.
    let unit = largest.map(|l| if l > 0.0 { l / one } else { 1.0 });
    let scale = unit.map(|u| 1.0 / u);
    let mut total: [i32; 8] = std::array::from_fn(|j| (f64::from(sums[j]) * scale[j]) as i32);
    for (x, line) in row.iter().zip(columns) {
        for j in 0..8 {
            // Below 2^26 each, nine of them below 2^30.
            total[j] += (f64::from(*x) * f64::from(line[j]) * scale[j]) as i32;
        }
    }
    std::array::from_fn(|j| truncated(f64::from(total[j]) * unit[j]))
}

/// The power of two that a number's exponent says: 0 of 0, the least one of a subnormal number, infinity if it is not finite.
fn power(x: f32) -> f64 {
    let bits = (x.to_bits() & 0x7f80_0000).max(0x0080_0000);
    f64::from(f32::from_bits(if x == 0.0 { 0 } else { bits }))
}

/// An f64 of few bits as f32, rounded towards zero.
fn truncated(x: f64) -> f32 {
    const BELOW_F32: u64 = (1 << 29) - 1;
    f64::from_bits(x.to_bits() & !BELOW_F32) as f32
}

/// Sums with an infinity or a NaN among the operands, where only the kind of the result counts.
fn special(row: &[f32], columns: &[[f32; 8]], sums: &[f32; 8]) -> [f32; 8] {
    std::array::from_fn(|j| {
        let products = row.iter().zip(columns).map(|(x, line)| f64::from(*x) * f64::from(line[j]));
        (f64::from(sums[j]) + products.sum::<f64>()) as f32
    })
}

/// A result moved by up to so many units in the last place, by how many a hash of the operand's bits says. Zeros, subnormal
/// numbers, infinities and NaN stay, and so do the results of a zero, which the manual gives exactly.
pub(crate) fn off_by(result: u32, operand: u32, units: u32) -> u32 {
    let magnitude = result & 0x7fff_ffff;
    if !(0x0080_0010..0x7f7f_fff0).contains(&magnitude) || operand & 0x7f80_0000 == 0 {
        return result;
    }
    let mut hash = operand.wrapping_mul(0x9e37_79b9);
    hash = (hash ^ hash >> 15).wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    result + hash % (2 * units + 1) - units
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of products of one row and column with a number.
    fn sum(products: &[(f32, f32)], c: f32) -> f32 {
        let row: Vec<f32> = products.iter().map(|p| p.0).collect();
        let columns: Vec<[f32; 8]> = products.iter().map(|p| [p.1; 8]).collect();
        let sums = block_sums(&row, &columns, &[c; 8]);
        assert!(sums.iter().all(|s| s.to_bits() == sums[0].to_bits()));
        sums[0]
    }

    #[test]
    fn aligned_and_cut() {
        let tiny = |bits: i32| (2f32.powi(-bits / 2), 2f32.powi(-(bits - bits / 2)));
        // Beside 1 a term keeps 24 bits: eight halves of the last one of them are lost each, where a sum in f32 of them is not.
        assert_eq!(sum(&[tiny(25); 8], 1.0), 1.0);
        assert_eq!(sum(&[tiny(24); 8], 1.0), 1.0 + 2f32.powi(-21));
        // The bit beyond f32 counts in the sum, and is cut off in its result, of either sign.
        assert_eq!(sum(&[tiny(24)], 1.0), 1.0);
        assert_eq!(sum(&[tiny(24), tiny(24)], 1.0), 1.0 + f32::EPSILON);
        assert_eq!(sum(&[tiny(24); 3], -1.0 - 2f32.powi(-20)), -(1.0 + 2f32.powi(-20) - f32::EPSILON * 2.0));
        // Towards zero, not to the nearest: 3 units of 2^-24 are one of 2^-23.
        assert_eq!(sum(&[tiny(24); 3], 1.0), 1.0 + f32::EPSILON);
        // Exponents are added before a product is normalised: 1.5 * 1.5 counts as of 1, and leaves 24 bits below 1.
        assert_eq!(sum(&[(1.5, 1.5), (-1.5, 1.5), tiny(24)], 0.0), 2f32.powi(-24));
        // A large sum that cancels has cut the small term off.
        assert_eq!(sum(&[(2.0, 1.0), (-2.0, 1.0), tiny(24)], 0.0), 0.0);
    }

    #[test]
    fn special_operands() {
        assert_eq!(sum(&[(0.0, 3.0)], 0.0), 0.0);
        assert_eq!(sum(&[(f32::INFINITY, 3.0)], 1.0), f32::INFINITY);
        assert!(sum(&[(f32::INFINITY, 0.0)], 1.0).is_nan());
        assert!(sum(&[(1.0, 1.0)], f32::NAN).is_nan());
        assert!(sum(&[(f32::INFINITY, 1.0)], f32::NEG_INFINITY).is_nan());
        // The smallest number of f16, squared, and numbers beyond those of f32.
        let least = 2f32.powi(-24);
        assert_eq!(sum(&[(least, least)], 0.0), 2f32.powi(-48));
        assert_eq!(sum(&[(2f32.powi(100), 2f32.powi(100))], 0.0), f32::INFINITY);
        // Subnormal numbers of bf16 and f32 count.
        let subnormal = f32::from_bits(0x0001_0000);
        assert_eq!(sum(&[(subnormal, 2f32.powi(40)); 8], 0.0), 8.0 * subnormal * 2f32.powi(40));
        assert_eq!(sum(&[(0.0, 1.0)], subnormal), subnormal);
    }

    #[test]
    fn blocks_follow_one_another() {
        let (mut a, b) = ([[0f32; 16]; 16], [[1f32; 8]; 16]);
        // A unit of 2^-24 in either block of 8 is lost beside 1, where 16 products in one sum would make one of f32.
        (a[3][2], a[3][12]) = (2f32.powi(-24), 2f32.powi(-24));
        let c = [[1f32; 8]; 16];
        assert_eq!(multiply(&a, &b, &c, 16, 8)[3][5], 1.0);
        assert_eq!(multiply(&a, &b, &c, 16, 16)[3][5], 1.0 + f32::EPSILON);
        assert_eq!(multiply(&a, &b, &c, 8, 4)[3][5], 1.0);
    }

    #[test]
    fn units_of_an_approximation() {
        for units in [1, 2] {
            let mut seen = vec![0; 2 * units as usize + 1];
            for operand in (0..10_000).map(|i| (1.0 + i as f32 * 0.37).to_bits()) {
                seen[(off_by(0x3f80_0000, operand, units) + units - 0x3f80_0000) as usize] += 1;
            }
            assert!(seen.iter().all(|n| *n > 1000), "{seen:?}");
        }
        for result in [0, 0x8000_0000, 1, 0x7f80_0000, 0xff80_0000, 0x7fff_ffff] {
            assert!((0..1000).all(|i| off_by(result, (i as f32 + 0.5).to_bits(), 2) == result));
        }
        assert_eq!([0, 0x8000_0000, 1].map(|operand| off_by(0x3f80_0000, operand, 2)), [0x3f80_0000; 3]);
    }
}
