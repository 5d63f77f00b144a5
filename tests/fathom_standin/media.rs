//! Recordings: a real MP4 (H.264, every macroblock stored as it is), padded to any size with a `free` box, and served from
//! any offset without being held in memory.

/// Size of the picture in macroblocks of 16 pixels.
const WIDE: u32 = 10;
const HIGH: u32 = 6;
/// Pictures, one a second.
const PICTURES: u32 = 4;
/// Largest piece that is made at once.
const PIECE: u64 = 64 * 1024;

/// One recording, of which only the beginning is kept.
pub(crate) struct Video {
    head: Vec<u8>,
    length: u64,
    seed: u64,
}

impl Video {
    /// A video of at least `bytes` bytes; a small one is as small as its pictures allow.
    pub(crate) fn new(recording_id: u64, bytes: u64) -> Self {
        let mut head = movie(recording_id);
        let small = head.len() as u64;
        let length = bytes.max(small + 16);
        // A 64-bit size, so that any length has the same form.
        head.extend(1_u32.to_be_bytes());
        head.extend(b"free");
        head.extend((length - small).to_be_bytes());
        Self { head, length, seed: recording_id }
    }

    /// The same with other padding.
    pub(crate) fn version(mut self, version: u64) -> Self {
        self.seed = self.seed.wrapping_add(version << 16);
        self
    }

    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    pub(crate) fn etag(&self) -> String {
        format!("\"{:x}-{:x}\"", self.seed, self.length)
    }

    /// The next piece from an offset; empty at the end.
    pub(crate) fn piece(&self, offset: u64) -> Vec<u8> {
        let end = self.length.min(offset.saturating_add(PIECE));
        (offset..end).map(|at| self.byte(at)).collect()
    }

    fn byte(&self, at: u64) -> u8 {
        let known = usize::try_from(at).ok().and_then(|at| self.head.get(at)).copied();
        // Padding that differs from place to place, so that a piece in the wrong place is noticed.
        known.unwrap_or_else(|| at.wrapping_mul(0x9e37_79b9).wrapping_add(self.seed).to_le_bytes()[2])
    }
}

fn boxed(kind: [u8; 4], content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len() + 8).unwrap_or(u32::MAX);
    [&size.to_be_bytes()[..], &kind, content].concat()
}

/// A box with version and flags, made of 32-bit numbers.
fn full(kind: [u8; 4], flags: u32, numbers: &[u32]) -> Vec<u8> {
    let content: Vec<u8> = std::iter::once(&flags).chain(numbers).flat_map(|n| n.to_be_bytes()).collect();
    boxed(kind, &content)
}

const MATRIX: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

fn movie(recording_id: u64) -> Vec<u8> {
    let pictures: Vec<Vec<u8>> = (0..PICTURES).map(|n| picture(n, recording_id)).collect();
    let ftyp = boxed(*b"ftyp", b"isom\0\0\x02\0isomiso2avc1mp41");
    // The size of the index does not depend on where it points.
    let offset = u32::try_from(ftyp.len() + index(&pictures, 0).len() + 8).unwrap_or(0);
    [ftyp, index(&pictures, offset), boxed(*b"mdat", &pictures.concat())].concat()
}

fn index(pictures: &[Vec<u8>], offset: u32) -> Vec<u8> {
    let (width, height) = (WIDE * 16, HIGH * 16);
    let mut sizes = vec![0, PICTURES];
    sizes.extend(pictures.iter().map(|picture| u32::try_from(picture.len()).unwrap_or(0)));
    let stbl = boxed(
        *b"stbl",
        &[
            boxed(*b"stsd", &[&[0, 0, 0, 0, 0, 0, 0, 1], &avc1()[..]].concat()),
            full(*b"stts", 0, &[1, PICTURES, 1000]),
            full(*b"stsc", 0, &[1, 1, PICTURES, 1]),
            full(*b"stsz", 0, &sizes),
            full(*b"stco", 0, &[1, offset]),
        ]
        .concat(),
    );
    let dinf = boxed(*b"dinf", &boxed(*b"dref", &[&[0, 0, 0, 0, 0, 0, 0, 1], &full(*b"url ", 1, &[])[..]].concat()));
    let minf = boxed(*b"minf", &[full(*b"vmhd", 1, &[0, 0]), dinf, stbl].concat());
    let hdlr = boxed(*b"hdlr", &[&[0; 8][..], b"vide", &[0; 12], b"Video\0"].concat());
    let mdia = boxed(*b"mdia", &[full(*b"mdhd", 0, &[0, 0, 1000, PICTURES * 1000, 0x55c4_0000]), hdlr, minf].concat());
    let mut tkhd = vec![0, 0, 1, 0, PICTURES * 1000, 0, 0, 0, 0];
    tkhd.extend(MATRIX);
    tkhd.extend([width << 16, height << 16]);
    let trak = boxed(*b"trak", &[full(*b"tkhd", 3, &tkhd), mdia].concat());
    let mut mvhd = vec![0, 0, 1000, PICTURES * 1000, 0x1_0000, 0x0100_0000, 0, 0];
    mvhd.extend(MATRIX);
    mvhd.extend([0, 0, 0, 0, 0, 0, 2]);
    boxed(*b"moov", &[full(*b"mvhd", 0, &mvhd), trak].concat())
}

fn avc1() -> Vec<u8> {
    let (sps, pps) = (sequence(), parameters());
    let short = |number: usize| u16::try_from(number).unwrap_or(0).to_be_bytes();
    let config =
        [&[1, sps[1], sps[2], sps[3], 0xff, 0xe1][..], &short(sps.len()), &sps, &[1], &short(pps.len()), &pps].concat();
    let size = [short(WIDE as usize * 16), short(HIGH as usize * 16)].concat();
    let resolution = [0, 0x48, 0, 0, 0, 0x48, 0, 0];
    let content = [
        &[0, 0, 0, 0, 0, 0, 0, 1][..],
        &[0; 16],
        &size,
        &resolution,
        &[0, 0, 0, 0, 0, 1],
        &[0; 32],
        &[0, 0x18, 0xff, 0xff],
        &boxed(*b"avcC", &config),
    ]
    .concat();
    boxed(*b"avc1", &content)
}

/// Bits of H.264, most significant first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn put(&mut self, count: u32, value: u32) -> &mut Self {
        for at in (0..count).rev() {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let bit = u8::from(value >> at & 1 == 1);
            if let Some(last) = self.bytes.last_mut() {
                *last |= bit << (7 - self.used);
            }
            self.used = (self.used + 1) % 8;
        }
        self
    }

    /// An unsigned Exp-Golomb code.
    fn ue(&mut self, value: u32) -> &mut Self {
        let length = 32 - (value + 1).leading_zeros();
        self.put(length - 1, 0).put(length, value + 1)
    }

    fn align(&mut self) -> &mut Self {
        self.used = 0;
        self
    }

    fn end(&mut self) -> Vec<u8> {
        self.put(1, 1).align();
        std::mem::take(&mut self.bytes)
    }
}

/// Constrained baseline, level 3, one reference, pictures in order.
fn sequence() -> Vec<u8> {
    let mut bits = Bits { bytes: vec![0x67, 0x42, 0xc0, 0x1e], used: 0 };
    bits.ue(0).ue(0).ue(2).ue(1).put(1, 0).ue(WIDE - 1).ue(HIGH - 1);
    bits.put(1, 1).put(1, 1).put(1, 0).put(1, 0).end()
}

fn parameters() -> Vec<u8> {
    let mut bits = Bits { bytes: vec![0x68], used: 0 };
    bits.ue(0).ue(0).put(1, 0).put(1, 0).ue(0).ue(0).ue(0).put(1, 0).put(2, 0);
    // Quantisers and offset zero; the deblocking filter can be switched off per picture.
    bits.ue(0).ue(0).ue(0).put(1, 1).put(1, 0).put(1, 0).end()
}

/// One picture with its length in front: a colour that depends on the recording, and a bar that moves.
fn picture(n: u32, recording_id: u64) -> Vec<u8> {
    let mut bits = Bits { bytes: vec![0x65], used: 0 };
    // First macroblock 0, all macroblocks intra, parameters 0, frame 0, which picture, no marks, quantiser 0, no filter.
    bits.ue(0).ue(7).ue(0).put(4, 0).ue(n % 2).put(2, 0).ue(0).ue(1);
    let tint = u8::try_from(recording_id % 5).unwrap_or(0) * 24;
    for row in 0..HIGH {
        for column in 0..WIDE {
            bits.ue(25).align();
            let is_bar = column == n * WIDE / PICTURES;
            let light = if is_bar { 210 } else { 60 + u8::try_from(row * 12).unwrap_or(0) };
            bits.bytes.extend([light; 256]);
            bits.bytes.extend([80 + tint; 64]);
            bits.bytes.extend([180 - tint; 64]);
        }
    }
    let data = bits.end();
    [&u32::try_from(data.len()).unwrap_or(0).to_be_bytes()[..], &data].concat()
}
