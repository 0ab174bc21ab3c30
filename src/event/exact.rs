//! JSON into a type, where no number changes on the way.
//!
//! In: JSON text. Out: a value, or an error that names the number. Guarantee: a number becomes a float only where the float
//! written in decimal is that number again. serde_json by itself rounds `123456789012345678901234567890` in silence.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde_json::Error;
use serde_json::value::RawValue;

/// As deep as serde_json goes by itself.
const DEPTH_MAX: u8 = 127;

/// Reads a `T`. Its fields of type [`RawValue`], `i128` and `u128` take numbers that no float holds.
///
/// # Errors
/// The JSON does not fit, is nested too deep, or has a number that would be rounded.
pub(crate) fn from_json<T: DeserializeOwned>(json: &RawValue) -> Result<T, Error> {
    let text = json.get();
    match numbers(text).all(is_short) {
        true => serde_json::from_str(text),
        // Slower: only where it matters which field such a number goes to.
        false => T::deserialize(Exact { text, depth: 0 }),
    }
}

/// The numbers of a JSON text.
fn numbers(json: &str) -> impl Iterator<Item = &str> {
    let mut rest = json;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            let begin = &rest[at..];
            if let Some(string) = begin.strip_prefix('"') {
                rest = behind_string(string);
                continue;
            }
            let is_part = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
            let end = begin.find(|c| !is_part(c)).unwrap_or(begin.len());
            rest = &begin[end..];
            return Some(&begin[..end]);
        }
    })
}

/// What follows a string whose quote stands before `text`.
fn behind_string(text: &str) -> &str {
    let mut is_escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map_or("", |end| &text[end + 1..])
}

/// So many digits a float keeps, and serde_json reads them to the last bit.
fn is_short(number: &str) -> bool {
    number.len() <= 15 && !number.contains(['e', 'E'])
}

/// One JSON value. What it holds is read by further ones, each from its own text.
#[derive(Clone, Copy)]
struct Exact<'de> {
    text: &'de str,
    depth: u8,
}

impl<'de> Exact<'de> {
    fn inner(self) -> serde_json::Deserializer<serde_json::de::StrRead<'de>> {
        serde_json::Deserializer::from_str(self.text)
    }

    /// The number as a float; none of what is no number. serde_json's own floats may be off by their last bit.
    fn float(self) -> Result<Option<f64>, Error> {
        let is_number = self
            .text
            .starts_with(|c: char| c == '-' || c.is_ascii_digit());
        let Some(float) = self.text.parse::<f64>().ok().filter(|_| is_number) else {
            return Ok(None);
        };
        // An infinity has no digits.
        if decimal(&format!("{float:e}")).is_some_and(|back| decimal(self.text) == Some(back)) {
            return Ok(Some(float));
        }
        let shown: String = self.text.chars().take(60).collect();
        Err(de::Error::custom(format!(
            "the number {shown} would be rounded; read it as serde_json::value::RawValue, or a whole one as i128"
        )))
    }

    fn deserialize_float<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.float()? {
            Some(float) => visitor.visit_f64(float),
            None => self.inner().deserialize_f64(visitor),
        }
    }
}

/// Sign, digits without zeros at their ends, and the place of the point before the first of them; none of what is no number.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        return Some((is_negative, String::new(), 0));
    }
    let leading_zeros = digits.len() - significant.len();
    let exponent: i64 = exponent.parse().ok()?;
    let point = exponent.checked_add(whole.len() as i64 - leading_zeros as i64)?;
    Some((
        is_negative,
        significant.trim_end_matches('0').to_owned(),
        point,
    ))
}

macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty),*);)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, Error> {
            self.inner().$method($($argument,)* Nested { by: visitor, depth: self.depth })
        }
    )*};
}

impl<'de> Deserializer<'de> for Exact<'de> {
    type Error = Error;

    forward! {
        deserialize_bool(); deserialize_char(); deserialize_str(); deserialize_string();
        deserialize_i8(); deserialize_i16(); deserialize_i32(); deserialize_i64(); deserialize_i128();
        deserialize_u8(); deserialize_u16(); deserialize_u32(); deserialize_u64(); deserialize_u128();
        deserialize_bytes(); deserialize_byte_buf(); deserialize_unit(); deserialize_seq();
        deserialize_map(); deserialize_identifier(); deserialize_ignored_any();
        deserialize_unit_struct(name: &'static str);
        deserialize_tuple(len: usize);
        deserialize_tuple_struct(name: &'static str, len: usize);
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let is_whole = self.text.parse::<i64>().is_ok() || self.text.parse::<u64>().is_ok();
        if !is_whole && let Some(float) = self.float()? {
            return visitor.visit_f64(float);
        }
        self.inner().deserialize_any(Nested {
            by: visitor,
            depth: self.depth,
        })
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_float(visitor)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_float(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.text {
            "null" => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        // serde_json tells its own RawValue by such a name, and hands over the text.
        match name.starts_with("$serde_json::") {
            true => self.inner().deserialize_newtype_struct(name, visitor),
            false => visitor.visit_newtype_struct(self),
        }
    }
}

/// A visitor or access that hands on what is inside a value as [`Exact`].
struct Nested<B> {
    by: B,
    depth: u8,
}

impl<B> Nested<B> {
    fn inside<'de, S, E>(depth: u8, seed: S, json: &'de RawValue) -> Result<S::Value, E>
    where
        S: DeserializeSeed<'de>,
        E: de::Error,
    {
        if depth == DEPTH_MAX {
            return Err(E::custom("it is nested too deep"));
        }
        let exact = Exact {
            text: json.get(),
            depth: depth + 1,
        };
        seed.deserialize(exact).map_err(|error| {
            // The place in the inner text says nothing; serde_json adds that in the outer one.
            let text = error.to_string();
            E::custom(text.split(" at line ").next().unwrap_or_default())
        })
    }
}

macro_rules! visit {
    ($($method:ident($type:ty);)*) => {$(
        fn $method<E: de::Error>(self, value: $type) -> Result<Self::Value, E> {
            self.by.$method(value)
        }
    )*};
}

impl<'de, B: Visitor<'de>> Visitor<'de> for Nested<B> {
    type Value = B::Value;

    visit! {
        visit_bool(bool); visit_i64(i64); visit_i128(i128); visit_u64(u64); visit_u128(u128); visit_f64(f64);
        visit_str(&str); visit_borrowed_str(&'de str); visit_bytes(&[u8]); visit_borrowed_bytes(&'de [u8]);
    }

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.by.expecting(f)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        self.by.visit_unit()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        let depth = self.depth;
        self.by.visit_seq(Nested { by: access, depth })
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        let depth = self.depth;
        self.by.visit_map(Nested { by: access, depth })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        let depth = self.depth;
        self.by.visit_enum(Nested { by: access, depth })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Nested<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let json = self.by.next_element::<&RawValue>()?;
        json.map(|json| Self::inside(self.depth, seed, json))
            .transpose()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Nested<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.by.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let json = self.by.next_value()?;
        Self::inside(self.depth, seed, json)
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Nested<A> {
    type Error = A::Error;
    type Variant = Nested<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let depth = self.depth;
        let (value, by) = self.by.variant_seed(seed)?;
        Ok((value, Nested { by, depth }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Nested<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.by.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let json = self.by.newtype_variant()?;
        Self::inside(self.depth, seed, json)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, by: V) -> Result<V::Value, A::Error> {
        let depth = self.depth;
        self.by.tuple_variant(len, Nested { by, depth })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        by: V,
    ) -> Result<V::Value, A::Error> {
        let depth = self.depth;
        self.by.struct_variant(fields, Nested { by, depth })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Sum {
        Whole(i128),
        Float(f64),
        Pair(f64, Option<f64>),
        Text { of: Box<RawValue> },
    }

    fn read<T: DeserializeOwned>(json: &str) -> Result<T, String> {
        let json = RawValue::from_string(json.to_owned()).unwrap();
        from_json(&json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_float_takes_only_what_it_keeps() {
        for kept in [
            "0",
            "-0.0",
            "0.1",
            "1.50",
            "1e308",
            "9007199254740993.0e-1",
            "100000000000000000000000",
            "0e999",
        ] {
            let float: f64 = read(kept).unwrap();
            assert_eq!(float, kept.parse::<f64>().unwrap());
        }
        for rounded in [
            "1e400",
            "123456789012345678901234567890",
            "9007199254740993",
            "0.10000000000000001",
            "1e99999999999999999999",
        ] {
            for json in [rounded.to_owned(), format!("[{rounded}]")] {
                let refused = read::<serde_json::Value>(&json).err();
                let is_u64 = rounded.parse::<u64>().is_ok();
                assert_eq!(refused.is_none(), is_u64, "{json}");
                if let Some(refused) = refused {
                    assert!(
                        refused.contains(&format!("{rounded} would be rounded")),
                        "{refused}"
                    );
                }
            }
            assert!(read::<f64>(rounded).is_err());
            let text: BTreeMap<String, Box<RawValue>> =
                read(&format!(r#"{{"\"1e400":{rounded}}}"#)).unwrap();
            assert_eq!(text["\"1e400"].get(), rounded);
        }
    }

    #[test]
    fn a_number_goes_where_it_is_held() {
        let whole = "123456789012345678901234567890";
        let sums: Vec<Sum> = read(&format!(
            r#"[{{"whole": {whole}}}, {{"float": 0.5}}, {{"pair": [1, null]}}, {{"text": {{"of": 1e400}}}}]"#
        ))
        .unwrap();
        assert!(matches!(
            &sums[..],
            [Sum::Whole(n), Sum::Float(0.5), Sum::Pair(1.0, None), Sum::Text { of }]
                if n.to_string() == whole && of.get() == "1e400"
        ));
        for refused in [r#"[{"float": 1e400}]"#, r#"[{"pair": [1, 1e400]}]"#] {
            let error = read::<Vec<Sum>>(refused).unwrap_err();
            assert!(
                error.starts_with("the number 1e400 would be rounded"),
                "{error}"
            );
            assert_eq!(error.matches("at line").count(), 1, "{error}");
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_an_error() {
        let depth = 100_000;
        let json = format!("{}1e400{}", "[".repeat(depth), "]".repeat(depth));
        assert!(
            read::<serde_json::Value>(&json)
                .unwrap_err()
                .contains("too deep")
        );
    }

    proptest::proptest! {
        #[test]
        fn what_a_float_is_written_as_comes_back(float: f64) {
            proptest::prop_assume!(float.is_finite());
            for text in [float.to_string(), format!("{float:e}"), format!("[{float:e}]")] {
                let read: Result<Vec<f64>, _> = match text.starts_with('[') {
                    true => read(&text),
                    false => read(&text).map(|float| vec![float]),
                };
                proptest::prop_assert_eq!(read, Ok(vec![float]));
            }
        }
    }
}
