import { corrupt } from './files.ts';

/** What a file is that is not what it was taken for, by its first bytes. */

interface FileKind {
  readonly what: string;
  /** What to do. */
  readonly advice: string;
}

/** Bytes that are enough to know any of them. */
export const HEAD_BYTES = 4096;

const AS_CSV = 'save it as CSV';
const WITH_PANDAS = (read: string) =>
  `write it with pandas: pd.${read}(…).to_csv('table.csv', index=False)`;
const UNPACK = 'unpack it';

const MAGICS: readonly (readonly [magic: string, at: number, kind: FileKind])[] = [
  ['PAR1', 0, { what: 'a Parquet file', advice: 'parquetSource reads it' }],
  ['ARROW1', 0, { what: 'an Arrow (Feather) file', advice: WITH_PANDAS('read_feather') }],
  ['FEA1', 0, { what: 'a Feather file', advice: WITH_PANDAS('read_feather') }],
  ['ORC', 0, { what: 'an ORC file', advice: WITH_PANDAS('read_orc') }],
  ['Obj\x01', 0, { what: 'an Avro file', advice: AS_CSV }],
  ['\x89HDF\r\n\x1a\n', 0, { what: 'an HDF5 file', advice: 'save its arrays with numpy.save' }],
  [
    'MATLAB 5.0',
    0,
    {
      what: 'a MATLAB file',
      advice: 'save its arrays with numpy.save (scipy.io.loadmat reads them)',
    },
  ],
  ['\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 0, { what: 'an old Excel workbook', advice: AS_CSV }],
  ['SQLite format 3\0', 0, { what: 'an SQLite database', advice: 'write the table as CSV' }],
  ['%PDF-', 0, { what: 'a PDF', advice: AS_CSV }],
  ['\x89PNG', 0, { what: 'a PNG picture', advice: 'loadImageFolder reads folders of pictures' }],
  [
    '\xff\xd8\xff',
    0,
    { what: 'a JPEG picture', advice: 'loadImageFolder reads folders of pictures' },
  ],
  ['GIF8', 0, { what: 'a GIF picture', advice: 'loadImageFolder reads folders of pictures' }],
  ['\x93NUMPY', 0, { what: 'a .npy file', advice: 'readNpy reads it' }],
  [
    '\x80\x04\x95',
    0,
    { what: 'a Python pickle', advice: 'write arrays with numpy.save, tables with to_csv' },
  ],
  [
    '\x80\x05\x95',
    0,
    { what: 'a Python pickle', advice: 'write arrays with numpy.save, tables with to_csv' },
  ],
  [
    '\x80\x03',
    0,
    { what: 'a Python pickle', advice: 'write arrays with numpy.save, tables with to_csv' },
  ],
  ['RDX', 0, { what: 'an R data file', advice: 'write it with write.csv(…, row.names = FALSE)' }],
  ['BZh', 0, { what: 'compressed by bzip2', advice: `${UNPACK} with bunzip2` }],
  ['\xfd7zXZ\0', 0, { what: 'compressed by xz', advice: `${UNPACK} with unxz` }],
  ['\x28\xb5\x2f\xfd', 0, { what: 'compressed by zstd', advice: `${UNPACK} with unzstd` }],
  ['\x04\x22\x4d\x18', 0, { what: 'compressed by lz4', advice: `${UNPACK} with unlz4` }],
  ['7z\xbc\xaf\x27\x1c', 0, { what: 'a 7z archive', advice: UNPACK }],
  ['Rar!', 0, { what: 'a RAR archive', advice: UNPACK }],
  ['\x1f\x8b', 0, { what: 'compressed by gzip twice', advice: `${UNPACK} once with gunzip` }],
  [
    'ustar',
    257,
    { what: 'a tar archive', advice: `${UNPACK} and name a file in it; tarSource reads shards` },
  ],
  [
    'version https://git-lfs.github.com/spec/',
    0,
    { what: 'a pointer of Git LFS, not the file itself', advice: 'fetch it with git lfs pull' },
  ],
];

/** What begins so, or null for text and for what is not known. @param head at most HEAD_BYTES are looked at */
function fileKind(head: Uint8Array): FileKind | null {
  const bytes = Buffer.from(head.buffer, head.byteOffset, Math.min(head.length, HEAD_BYTES));
  const start = bytes.toString('latin1');
  if (start.startsWith('PK\x03\x04') || start.startsWith('PK\x05\x06')) return zipKind(start);
  // A column may be named PAR1: letters alone prove nothing.
  const isBinary = bytes.some((byte) => byte < 9 || (byte > 13 && byte < 32));
  for (const [magic, at, kind] of MAGICS) {
    if (start.startsWith(magic, at) && (isBinary || magic.length > 8)) return kind;
  }
  if (
    bytes.length >= 4 &&
    bytes[0] === 0 &&
    bytes[1] === 0 &&
    [8, 9, 11, 12, 13, 14].includes(bytes[2]!)
  ) {
    return { what: 'an IDX file', advice: 'readIdx reads it' };
  }
  if (/^(\xef\xbb\xbf)?\s*<(!doctype html|html|table)[\s>]/i.test(start)) {
    return {
      what: 'an HTML page',
      advice:
        'fetch the file again: a download often returns a login or error page instead of the file',
    };
  }
  if (/^(\xef\xbb\xbf)?\s*<\?xml\b/.test(start)) return { what: 'an XML file', advice: AS_CSV };
  if (/^(\xef\xbb\xbf)?\s*(\{\s*"|\[\s*[{"]|\[\s*\[\s*[-"\d])/.test(start)) {
    return { what: 'a JSON file', advice: WITH_PANDAS('read_json') };
  }
  if (/^\s*@relation\b/i.test(start)) return { what: 'an ARFF file', advice: AS_CSV };
  return null;
}

/** The name of the first entry stands behind the first header. */
function zipKind(start: string): FileKind {
  if (/\[Content_Types\]\.xml|_rels\/\.rels|xl\//.test(start)) {
    return { what: 'an Excel workbook (or another Office file)', advice: AS_CSV };
  }
  if (start.includes('mimetypeapplication/vnd.oasis')) {
    return { what: 'an OpenDocument file', advice: AS_CSV };
  }
  if (/^.{30}[^/]{0,200}?\.npy/s.test(start)) {
    return {
      what: 'an .npz archive of several arrays',
      advice:
        "save each array in its own file: numpy.save('inputs.npy', numpy.load('arrays.npz')['inputs'])",
    };
  }
  return { what: 'a zip archive', advice: `${UNPACK} and name a file in it` };
}

/** Throws where a file is recognised. @throws DownpourError DP_DATA_CORRUPT @param wanted such as 'a CSV file' */
export function refuseOtherKind(head: Uint8Array, path: string, wanted: string): void {
  const kind = fileKind(head);
  if (kind) throw corrupt(path, `not ${wanted} but ${kind.what}; ${kind.advice}`);
}
