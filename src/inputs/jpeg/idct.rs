//! The inverse transform: libjpeg's accurate integer one (13-bit constants), in 16 bits where its SIMD code is.

/// Computes 8 rows of 8 samples into `out`, `stride` apart.
pub(super) fn idct(block: &[i16; 64], steps: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut work = [[0i16; 8]; 8];
    let value = |at: usize| block[at].wrapping_mul(steps[at] as i16);
    if block[8..].iter().all(|&v| v == 0) {
        for x in 0..8 {
            let dc = value(x) << 2;
            work.iter_mut().for_each(|row| row[x] = dc);
        }
    } else {
        for x in 0..8 {
            let column = transform::<11>(std::array::from_fn(|y| value(8 * y + x)));
            work.iter_mut().zip(column).for_each(|(row, v)| row[x] = v);
        }
    }
    for (row, out) in work.iter().zip(out.chunks_mut(stride)) {
        for (to, v) in out.iter_mut().zip(transform::<18>(*row)) {
            *to = (v.clamp(-128, 127) + 128) as u8;
        }
    }
}

/// One pass over 8 values; the results are rounded to `SHIFT` bits less.
#[inline(always)]
fn transform<const SHIFT: u32>(v: [i16; 8]) -> [i16; 8] {
    let times = |a: i16, fa: i32, b: i16, fb: i32| (i32::from(a) * fa).wrapping_add(i32::from(b) * fb);
    // The even part.
    let even2 = times(v[2], 4_433, v[6], 4_433 - 15_137);
    let even3 = times(v[2], 4_433 + 6_270, v[6], 4_433);
    let even0 = i32::from(v[0].wrapping_add(v[4])) << 13;
    let even1 = i32::from(v[0].wrapping_sub(v[4])) << 13;
    let even =
        [even0.wrapping_add(even3), even1.wrapping_add(even2), even1.wrapping_sub(even2), even0.wrapping_sub(even3)];
    // The odd part.
    let (z3, z4) = (v[7].wrapping_add(v[3]), v[5].wrapping_add(v[1]));
    let sum3 = times(z3, 9_633 - 16_069, z4, 9_633);
    let sum4 = times(z3, 9_633, z4, 9_633 - 3_196);
    let odd = [
        times(v[7], -7_373, v[1], 12_299 - 7_373).wrapping_add(sum4),
        times(v[5], -20_995, v[3], 25_172 - 20_995).wrapping_add(sum3),
        times(v[5], 16_819 - 20_995, v[3], -20_995).wrapping_add(sum4),
        times(v[7], 2_446 - 7_373, v[1], -7_373).wrapping_add(sum3),
    ];
    let narrow = |v: i32| (v.wrapping_add(1 << (SHIFT - 1)) >> SHIFT).clamp(-32_768, 32_767) as i16;
    std::array::from_fn(|i| {
        if i < 4 { narrow(even[i].wrapping_add(odd[i])) } else { narrow(even[7 - i].wrapping_sub(odd[7 - i])) }
    })
}
