//! Parquet files: rows by row group.

use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::arrow_json::row_object;
use super::bytes::{ByteSource, SourceReader};
use super::table::{Chunk, ChunkPlace, no_column, parts};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;

impl Length for ByteSource {
    fn len(&self) -> u64 {
        ByteSource::len(self)
    }
}

/// Reads at given places, so that threads can share one open file (parquet's own reader of files moves a shared cursor).
impl ChunkReader for ByteSource {
    type T = std::io::BufReader<SourceReader>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(std::io::BufReader::new(self.reader_at(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let end = start.checked_add(length as u64).ok_or_else(|| ParquetError::EOF("a column chunk ends past any file".to_owned()))?;
        if let Self::Embedded(bytes) = self {
            let range = usize::try_from(start).ok().zip(usize::try_from(end).ok()).and_then(|(s, e)| bytes.get(s..e));
            return range.map(Bytes::from_static).ok_or_else(|| ParquetError::EOF("a range outside the data".to_owned()));
        }
        Ok(Bytes::from(self.read_range(start, end)?))
    }
}

/// An open parquet file.
#[derive(Debug)]
pub(crate) struct ParquetFile {
    bytes: ByteSource,
    metadata: ArrowReaderMetadata,
    projection: ProjectionMask,
}

impl ParquetFile {
    /// Reads the metadata. The error says what is wrong with the file.
    pub(crate) fn open(bytes: ByteSource, columns: Option<&[String]>) -> Result<(Self, Vec<ChunkPlace>, Vec<String>), String> {
        let describe = |e: ParquetError| match bytes.len() {
            0 => "the file is empty".to_owned(),
            _ => format!("{e}; the file may have been cut short or be of another format"),
        };
        let metadata = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(describe)?;
        let schema = metadata.parquet_schema();
        let names: Vec<String> = schema.root_schema().get_fields().iter().map(|f| f.name().to_owned()).collect();
        let projection = match columns {
            None => ProjectionMask::all(),
            Some(columns) => {
                let mut indices = Vec::with_capacity(columns.len());
                for column in columns {
                    let found = names.iter().position(|n| n == column);
                    indices.push(found.ok_or_else(|| no_column(column, &names))?);
                }
                ProjectionMask::roots(schema, indices)
            }
        };
        let (mut chunks, mut rows) = (Vec::new(), 0u64);
        for (group, meta) in metadata.metadata().row_groups().iter().enumerate() {
            let count = u64::try_from(meta.num_rows()).map_err(|_| format!("row group {group} has a negative number of rows"))?;
            let size = u64::try_from(meta.total_byte_size()).unwrap_or(0);
            rows = parts(&mut chunks, group, rows, count, size)?;
        }
        Ok((Self { bytes, metadata, projection }, chunks, names))
    }

    pub(crate) fn decode(&self, place: ChunkPlace) -> Result<Chunk, String> {
        let rows = usize::try_from(place.rows).map_err(|_| "the row group is too large".to_owned())?;
        let describe = |e: String| format!("row group {}: {e}; the file may be damaged", place.group);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(self.bytes.clone(), self.metadata.clone())
            .with_row_groups(vec![place.group])
            .with_projection(self.projection.clone())
            .with_batch_size(BATCH_ROWS.min(rows))
            .with_offset(place.offset)
            .with_limit(rows)
            .build()
            .map_err(|e| describe(e.to_string()))?;
        let mut out = Chunk::default();
        for batch in reader {
            let batch = batch.map_err(|e| describe(e.to_string()))?;
            for i in 0..batch.num_rows() {
                out.push(row_object(&batch, i));
            }
        }
        if out.len() != rows {
            return Err(describe(format!("it holds {} of its {rows} rows", out.len())));
        }
        Ok(out)
    }
}
