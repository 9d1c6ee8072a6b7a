//! Tables as Parquet: a row group, every column optional.

use std::io::{self, Write};
use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;

use super::{Cell, Column, Table};

impl Table {
    /// Writes the table: whole numbers as INT64, numbers as DOUBLE, text as UTF-8, yes or no as BOOLEAN. A cell without
    /// a value is null.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_parquet(&self, out: &mut (dyn Write + Send)) -> io::Result<()> {
        self.write(out).map_err(|error| match error {
            ParquetError::External(source) => match source.downcast::<io::Error>() {
                Ok(error) => *error,
                Err(other) => io::Error::other(other),
            },
            other => io::Error::other(other),
        })
    }

    fn write(&self, out: &mut (dyn Write + Send)) -> Result<(), ParquetError> {
        let fields = self.columns.iter().map(|column| field(column).map(Arc::new)).collect::<Result<_, _>>()?;
        let schema = Arc::new(Type::group_type_builder("schema").with_fields(fields).build()?);
        let mut file = SerializedFileWriter::new(out, schema, Arc::new(WriterProperties::default()))?;
        let mut group = file.next_row_group()?;
        for column in &self.columns {
            let Some(mut writer) = group.next_column()? else { break };
            write_column(column, &mut writer)?;
            writer.close()?;
        }
        group.close()?;
        file.close()?;
        Ok(())
    }
}

/// The kind of the cells of a column; text if it has none.
fn physical(column: &Column) -> Physical {
    match column.cells.iter().flatten().next() {
        Some(Cell::Number(_)) => Physical::INT64,
        Some(Cell::Real(_)) => Physical::DOUBLE,
        Some(Cell::Truth(_)) => Physical::BOOLEAN,
        Some(Cell::Text(_)) | None => Physical::BYTE_ARRAY,
    }
}

fn field(column: &Column) -> Result<Type, ParquetError> {
    let physical = physical(column);
    let text = (physical == Physical::BYTE_ARRAY).then_some(LogicalType::String);
    let builder = Type::primitive_type_builder(&column.name, physical);
    builder.with_repetition(Repetition::OPTIONAL).with_logical_type(text).build()
}

fn write_column(column: &Column, writer: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
    match physical(column) {
        Physical::INT64 => values::<Int64Type>(column, writer, |cell| match cell {
            Cell::Number(number) => Some(*number),
            _ => None,
        }),
        Physical::DOUBLE => values::<DoubleType>(column, writer, |cell| match cell {
            Cell::Real(number) => Some(*number),
            _ => None,
        }),
        Physical::BOOLEAN => values::<BoolType>(column, writer, |cell| match cell {
            Cell::Truth(truth) => Some(*truth),
            _ => None,
        }),
        _ => values::<ByteArrayType>(column, writer, |cell| match cell {
            Cell::Text(text) => Some(ByteArray::from(text.as_str())),
            _ => None,
        }),
    }
}

/// Writes the cells that `value` takes; the others are null.
fn values<T: DataType>(
    column: &Column,
    writer: &mut SerializedColumnWriter<'_>,
    value: impl Fn(&Cell) -> Option<T::T>,
) -> Result<(), ParquetError> {
    let cells: Vec<Option<T::T>> = column.cells.iter().map(|cell| cell.as_ref().and_then(&value)).collect();
    let levels: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
    let values: Vec<T::T> = cells.into_iter().flatten().collect();
    writer.typed::<T>().write_batch(&values, Some(&levels), None)?;
    Ok(())
}
