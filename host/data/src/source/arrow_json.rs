//! Values of Arrow arrays as JSON text.
//!
//! Integers, decimals and 64-bit numbers keep all their digits; dates and times are ISO 8601 strings (with `Z` where the column has a time
//! zone, since Arrow keeps such instants in UTC); nulls are `null`; bytes are strings where they are UTF-8 (older writers mark no string as
//! such), and refused otherwise, as are NaN and infinities: JSON has none of them.

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, ArrowPrimitiveType, PrimitiveArray, RecordBatch};
use arrow_schema::{DataType, IntervalUnit, TimeUnit};

use super::text::RowFault;
use crate::error::BadKind;

/// The deepest nesting; far more than any data set has.
const MAX_DEPTH: usize = 64;

/// Row `row` of a batch as one JSON object.
pub(crate) fn row_object(batch: &RecordBatch, row: usize) -> Result<String, RowFault> {
    let mut out = Vec::with_capacity(256);
    let mut fault = Fault { path: Vec::new() };
    out.push(b'{');
    for (i, (field, column)) in batch.schema_ref().fields().iter().zip(batch.columns()).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        string(&mut out, field.name());
        out.push(b':');
        if let Err(message) = value(&mut out, column.as_ref(), row, 0, &mut fault) {
            fault.path.push(field.name().clone());
            let field = fault.path.iter().rev().fold(String::new(), |p, part| p + "/" + &part.replace('~', "~0").replace('/', "~1"));
            return Err(RowFault { kind: BadKind::InvalidRecord, field, message });
        }
    }
    out.push(b'}');
    String::from_utf8(out).map_err(|e| RowFault::new(BadKind::InvalidUtf8, e.to_string()))
}

/// The way to the offending value, innermost part first.
struct Fault {
    path: Vec<String>,
}

fn string(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

fn float(out: &mut Vec<u8>, finite: bool, text: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
    if !finite {
        return Err("NaN or an infinity, which JSON cannot hold; replace it by null".to_owned());
    }
    text(out);
    Ok(())
}

fn shown<T: ArrowPrimitiveType>(out: &mut Vec<u8>, array: &PrimitiveArray<T>, row: usize)
where
    T::Native: std::fmt::Display,
{
    out.extend_from_slice(array.value(row).to_string().as_bytes());
}

fn list(out: &mut Vec<u8>, items: &dyn Array, depth: usize, fault: &mut Fault) -> Result<(), String> {
    out.push(b'[');
    for i in 0..items.len() {
        if i > 0 {
            out.push(b',');
        }
        value(out, items, i, depth, fault).inspect_err(|_| fault.path.push(i.to_string()))?;
    }
    out.push(b']');
    Ok(())
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(value).map_err(|_| {
        "bytes that are not text, which JSON cannot hold; name the columns that are wanted in the source's `columns`".to_owned()
    })?;
    string(out, text);
    Ok(())
}

fn outside() -> String {
    "a date or time outside the calendar".to_owned()
}

/// A moment, date or time through its `chrono` form.
macro_rules! moment {
    ($out:expr, $array:expr, $row:expr, $type:ty, $get:ident, $format:expr) => {{
        let text = $array.as_primitive::<$type>().$get($row).ok_or_else(outside)?.format($format).to_string();
        string($out, &text);
    }};
}

fn value(out: &mut Vec<u8>, array: &dyn Array, row: usize, depth: usize, fault: &mut Fault) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("nested more than {MAX_DEPTH} deep"));
    }
    if row >= array.len() {
        return Err("the file holds fewer values than it says".to_owned());
    }
    if array.is_null(row) {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    match array.data_type() {
        DataType::Null => out.extend_from_slice(b"null"),
        DataType::Boolean => out.extend_from_slice(if array.as_boolean().value(row) { b"true" } else { b"false" }),
        DataType::Int8 => shown(out, array.as_primitive::<Int8Type>(), row),
        DataType::Int16 => shown(out, array.as_primitive::<Int16Type>(), row),
        DataType::Int32 => shown(out, array.as_primitive::<Int32Type>(), row),
        DataType::Int64 => shown(out, array.as_primitive::<Int64Type>(), row),
        DataType::UInt8 => shown(out, array.as_primitive::<UInt8Type>(), row),
        DataType::UInt16 => shown(out, array.as_primitive::<UInt16Type>(), row),
        DataType::UInt32 => shown(out, array.as_primitive::<UInt32Type>(), row),
        DataType::UInt64 => shown(out, array.as_primitive::<UInt64Type>(), row),
        DataType::Float16 => {
            let v = array.as_primitive::<Float16Type>().value(row).to_f32();
            float(out, v.is_finite(), |out| _ = serde_json::to_writer(out, &v))?;
        }
        DataType::Float32 => {
            let v = array.as_primitive::<Float32Type>().value(row);
            float(out, v.is_finite(), |out| _ = serde_json::to_writer(out, &v))?;
        }
        DataType::Float64 => {
            let v = array.as_primitive::<Float64Type>().value(row);
            float(out, v.is_finite(), |out| _ = serde_json::to_writer(out, &v))?;
        }
        DataType::Decimal32(..) => out.extend_from_slice(array.as_primitive::<Decimal32Type>().value_as_string(row).as_bytes()),
        DataType::Decimal64(..) => out.extend_from_slice(array.as_primitive::<Decimal64Type>().value_as_string(row).as_bytes()),
        DataType::Decimal128(..) => out.extend_from_slice(array.as_primitive::<Decimal128Type>().value_as_string(row).as_bytes()),
        DataType::Decimal256(..) => out.extend_from_slice(array.as_primitive::<Decimal256Type>().value_as_string(row).as_bytes()),
        DataType::Utf8 => string(out, array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => string(out, array.as_string::<i64>().value(row)),
        DataType::Utf8View => string(out, array.as_string_view().value(row)),
        DataType::Binary => bytes(out, array.as_binary::<i32>().value(row))?,
        DataType::LargeBinary => bytes(out, array.as_binary::<i64>().value(row))?,
        DataType::BinaryView => bytes(out, array.as_binary_view().value(row))?,
        DataType::FixedSizeBinary(_) => bytes(out, array.as_fixed_size_binary().value(row))?,
        DataType::Date32 => moment!(out, array, row, Date32Type, value_as_date, "%Y-%m-%d"),
        DataType::Date64 => moment!(out, array, row, Date64Type, value_as_date, "%Y-%m-%d"),
        DataType::Time32(TimeUnit::Second) => moment!(out, array, row, Time32SecondType, value_as_time, "%H:%M:%S"),
        DataType::Time32(_) => moment!(out, array, row, Time32MillisecondType, value_as_time, "%H:%M:%S%.f"),
        DataType::Time64(TimeUnit::Microsecond) => moment!(out, array, row, Time64MicrosecondType, value_as_time, "%H:%M:%S%.f"),
        DataType::Time64(_) => moment!(out, array, row, Time64NanosecondType, value_as_time, "%H:%M:%S%.f"),
        DataType::Timestamp(unit, zone) => {
            let format = if zone.is_some() { "%Y-%m-%dT%H:%M:%S%.fZ" } else { "%Y-%m-%dT%H:%M:%S%.f" };
            match unit {
                TimeUnit::Second => moment!(out, array, row, TimestampSecondType, value_as_datetime, format),
                TimeUnit::Millisecond => moment!(out, array, row, TimestampMillisecondType, value_as_datetime, format),
                TimeUnit::Microsecond => moment!(out, array, row, TimestampMicrosecondType, value_as_datetime, format),
                TimeUnit::Nanosecond => moment!(out, array, row, TimestampNanosecondType, value_as_datetime, format),
            }
        }
        // A number of the column's unit: JSON has no durations.
        DataType::Duration(TimeUnit::Second) => shown(out, array.as_primitive::<DurationSecondType>(), row),
        DataType::Duration(TimeUnit::Millisecond) => shown(out, array.as_primitive::<DurationMillisecondType>(), row),
        DataType::Duration(TimeUnit::Microsecond) => shown(out, array.as_primitive::<DurationMicrosecondType>(), row),
        DataType::Duration(TimeUnit::Nanosecond) => shown(out, array.as_primitive::<DurationNanosecondType>(), row),
        DataType::Interval(IntervalUnit::YearMonth) => shown(out, array.as_primitive::<IntervalYearMonthType>(), row),
        DataType::List(_) => list(out, array.as_list::<i32>().value(row).as_ref(), depth + 1, fault)?,
        DataType::LargeList(_) => list(out, array.as_list::<i64>().value(row).as_ref(), depth + 1, fault)?,
        DataType::ListView(_) => list(out, array.as_list_view::<i32>().value(row).as_ref(), depth + 1, fault)?,
        DataType::LargeListView(_) => list(out, array.as_list_view::<i64>().value(row).as_ref(), depth + 1, fault)?,
        DataType::FixedSizeList(..) => list(out, array.as_fixed_size_list().value(row).as_ref(), depth + 1, fault)?,
        DataType::Struct(fields) => {
            out.push(b'{');
            for (i, (field, column)) in fields.iter().zip(array.as_struct().columns()).enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                string(out, field.name());
                out.push(b':');
                value(out, column.as_ref(), row, depth + 1, fault).inspect_err(|_| fault.path.push(field.name().clone()))?;
            }
            out.push(b'}');
        }
        DataType::Map(..) => map(out, array, row, depth + 1, fault)?,
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = integer(dictionary.keys(), row).ok_or_else(|| "a dictionary key that is no position".to_owned())?;
            value(out, dictionary.values().as_ref(), key, depth + 1, fault)?;
        }
        other => {
            return Err(format!(
                "a value of type {other}, which is not supported; name the columns that are wanted in the source's `columns`"
            ));
        }
    }
    Ok(())
}

/// A map with text keys as an object, any other as a list of `{"key", "value"}`.
fn map(out: &mut Vec<u8>, array: &dyn Array, row: usize, depth: usize, fault: &mut Fault) -> Result<(), String> {
    let entries = array.as_map().value(row);
    let (Some(keys), Some(values)) = (entries.columns().first(), entries.columns().get(1)) else {
        return Err("a map without keys or values".to_owned());
    };
    let object = matches!(keys.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    out.push(if object { b'{' } else { b'[' });
    for i in 0..entries.len() {
        if i > 0 {
            out.push(b',');
        }
        if object {
            value(out, keys.as_ref(), i, depth, fault)?;
            out.push(b':');
            value(out, values.as_ref(), i, depth, fault).inspect_err(|_| fault.path.push(i.to_string()))?;
        } else {
            out.extend_from_slice(b"{\"key\":");
            value(out, keys.as_ref(), i, depth, fault)?;
            out.extend_from_slice(b",\"value\":");
            value(out, values.as_ref(), i, depth, fault).inspect_err(|_| fault.path.push(i.to_string()))?;
            out.push(b'}');
        }
    }
    out.push(if object { b'}' } else { b']' });
    Ok(())
}

fn integer(keys: &dyn Array, row: usize) -> Option<usize> {
    match keys.data_type() {
        DataType::Int8 => keys.as_primitive::<Int8Type>().value(row).try_into().ok(),
        DataType::Int16 => keys.as_primitive::<Int16Type>().value(row).try_into().ok(),
        DataType::Int32 => keys.as_primitive::<Int32Type>().value(row).try_into().ok(),
        DataType::Int64 => keys.as_primitive::<Int64Type>().value(row).try_into().ok(),
        DataType::UInt8 => Some(keys.as_primitive::<UInt8Type>().value(row).into()),
        DataType::UInt16 => Some(keys.as_primitive::<UInt16Type>().value(row).into()),
        DataType::UInt32 => keys.as_primitive::<UInt32Type>().value(row).try_into().ok(),
        DataType::UInt64 => keys.as_primitive::<UInt64Type>().value(row).try_into().ok(),
        _ => None,
    }
}
