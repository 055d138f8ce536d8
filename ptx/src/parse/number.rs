//! Literals.

use super::tree::Number;

/// Parses a number: decimal, `0x`, `0b`, octal, `0f` and `0d` with hex digits, decimal fractions.
pub(super) fn number(word: &str) -> Option<Number> {
    if !word.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    if let Some(hex) = word.strip_prefix("0f").or(word.strip_prefix("0F")).filter(|h| h.len() == 8) {
        return u32::from_str_radix(hex, 16).ok().map(Number::F32);
    }
    if let Some(hex) = word.strip_prefix("0d").or(word.strip_prefix("0D")).filter(|h| h.len() == 16) {
        return u64::from_str_radix(hex, 16).ok().map(Number::F64);
    }
    if word.contains('.') {
        return word.parse::<f64>().ok().map(|v| Number::F64(v.to_bits()));
    }
    let digits = word.trim_end_matches('U');
    let value = if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16)
    } else if let Some(bits) = digits.strip_prefix("0b").or(digits.strip_prefix("0B")) {
        u64::from_str_radix(bits, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8)
    } else {
        digits.parse()
    };
    value.ok().map(|v| Number::Int(i128::from(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number("0f3F800000"), Some(Number::F32(0x3f80_0000)));
        assert_eq!(number("0d3FF0000000000000"), Some(Number::F64(1.0f64.to_bits())));
        assert_eq!(number("0xffffffffU"), Some(Number::Int(0xffff_ffff)));
        assert_eq!(number("017"), Some(Number::Int(15)));
        assert_eq!(number("0"), Some(Number::Int(0)));
        assert_eq!(number("%r1"), None);
    }
}
