//! Numbers and the range that the JSON schema of their place allows.

use serde_json::Value;

/// What is wrong with a number where the schema allows only others: `must be at least 1 and at most 1000, not 0`.
pub(crate) fn fault(schema: &Value, value: &Value) -> Option<String> {
    let given = value.as_f64()?;
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let (least, above, most) = (bound("minimum"), bound("exclusiveMinimum"), most(schema));
    let fits = least.is_none_or(|least| given >= least)
        && above.is_none_or(|above| given > above)
        && most.is_none_or(|most| given <= most);
    if fits {
        return None;
    }
    let parts = [(least, "at least"), (above, "more than"), (most, "at most")];
    let right: Vec<_> = parts.iter().filter_map(|(bound, word)| bound.map(|bound| format!("{word} {bound}"))).collect();
    Some(format!("must be {}, not {value}", right.join(" and ")))
}

/// The largest value: what the schema says, or what the type holds.
fn most(schema: &Value) -> Option<f64> {
    let stated = schema.get("maximum").and_then(Value::as_f64);
    stated.or_else(|| (schema.get("format")? == "uint32").then_some(f64::from(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_out_of_its_range_is_told_what_would_be_in_it() {
        let port = json!({"minimum": 1, "maximum": 65_535});
        let many = json!({"minimum": 0, "format": "uint32"});
        let seconds = json!({"exclusiveMinimum": 0});
        for (schema, good) in [(&port, json!(1)), (&port, json!(65_535)), (&port, json!("x")), (&many, json!(u32::MAX))]
        {
            assert_eq!(fault(schema, &good), None, "{good}");
        }
        assert_eq!((fault(&seconds, &json!(0.001)), fault(&json!({}), &json!(-1))), (None, None));
        for (schema, wrong, said) in [
            (&port, json!(65_536), "must be at least 1 and at most 65535, not 65536"),
            (&port, json!(0), "must be at least 1 and at most 65535, not 0"),
            (&many, json!(1_u64 << 32), "must be at least 0 and at most 4294967295, not 4294967296"),
            (&seconds, json!(0), "must be more than 0, not 0"),
        ] {
            assert_eq!(fault(schema, &wrong).as_deref(), Some(said));
        }
    }
}
