#![allow(missing_docs, clippy::all, unused)]
use std::{io::{self,BufRead}, ops::Range, sync::Arc};
use crate::media::Compression;
#[derive(Debug, Clone, PartialEq, Eq)] pub struct SpanDigest(pub [u8;32]);
#[derive(Debug, Clone, PartialEq, Eq)] pub struct Index { pub compression: Compression, pub blob_size: u64, pub size: u64, pub spans: Vec<Span> }
#[derive(Debug, Clone, PartialEq, Eq)] pub struct Span { pub start: u64, pub digest: SpanDigest, pub entry: Option<Entry> }
#[derive(Debug, Clone, PartialEq, Eq)] pub struct Entry { pub offset: u64, pub bits: u8, pub window: Vec<u8> }
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)] pub enum IndexError { #[error("damaged")] Corrupt }
#[derive(Debug, thiserror::Error)] pub enum SpanError { #[error(transparent)] Input(io::Error), #[error("x")] WrongDigest{span: usize} }
impl Index { pub fn len(&self)->usize{0} pub fn range(&self, span: usize)->Range<u64>{0..0} pub fn spans_of(&self, b: Range<u64>)->Range<usize>{0..0} pub fn segment(&self, s: usize)->Range<usize>{0..0}
 pub fn blob_range(&self, s: Range<usize>)->Range<u64>{0..0} pub fn is_good(&self, s: usize, b:&[u8])->bool{false} }
pub fn encode(i:&Index)->Vec<u8>{vec![]} pub fn decode(b:&[u8])->Result<Index,IndexError>{Err(IndexError::Corrupt)}
#[derive(Debug)] pub struct Spans<R>(R);
pub fn read<R: BufRead>(index: Arc<Index>, s: Range<usize>, input: R)->Spans<R>{Spans(input)}
impl<R: BufRead> Spans<R> { pub fn next(&mut self, out:&mut Vec<u8>)->Result<Option<usize>,SpanError>{Ok(None)} }

#[derive(Debug)] pub struct Builder; impl Builder { pub fn new()->Self{Self} pub fn entries(&mut self, e: Vec<(u64,Entry)>){} pub fn push(&mut self, b:&[u8]){} pub fn finish(self, c: Compression, s: u64)->Index{todo!()} }
