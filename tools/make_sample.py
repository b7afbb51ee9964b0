"""Make the sample that ships in `course_lib/data`: `COURSE_DATA=<folder> python tools/make_sample.py [out folder]`.

The first 6,000 training and 1,000 test images of Fashion-MNIST, in their order, as Parquet files of PNGs.
"""
import io, os, sys
from pathlib import Path

import datasets, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image

from course_lib.sources import CLASSES, read_idx_folder

def png(a):
    f = io.BytesIO()
    Image.fromarray(a).save(f, 'PNG', optimize=True)
    return f.getvalue()

def main(out):
    Path(out).mkdir(parents=True, exist_ok=True)
    arrays = read_idx_folder(os.environ['COURSE_DATA'], 'fashion_mnist')
    feats = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES['fashion_mnist']))
    for split,n in dict(train=6000, test=1000).items():
        x,y = (o[:n] for o in arrays[split])
        image = pa.array([dict(bytes=png(o), path=None) for o in x], feats['image'].pa_type)
        tab = pa.table(dict(image=image, label=pa.array(y.astype('int64')))).cast(feats.arrow_schema)
        pq.write_table(tab, Path(out)/f'fashion_mnist_{split}.parquet', compression='zstd', compression_level=22)

if __name__ == '__main__':
    main(*(sys.argv[1:] or [Path(__file__).parent.parent/'course_lib'/'data']))
