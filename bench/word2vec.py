"""gensim's word2vec on the sentences of the Brown corpus, for word2vec.ts.

    python3 word2vec.py folder epochs seed vectors.txt
"""

import os
import re
import sys

from gensim.models import Word2Vec

folder, epochs, seed, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
sentences = []
for name in sorted(os.listdir(folder)):
    if not re.fullmatch(r"c[a-r]\d\d", name):
        continue
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        for line in file:
            # Each word has its part of speech behind a slash.
            words = (re.sub(r"/[^\s/]+$", "", word) for word in line.lower().split())
            sentences.append([word for word in words if re.search(r"[^\W\d_]", word)])
model = Word2Vec(
    sentences,
    sg=1,
    negative=5,
    vector_size=100,
    window=5,
    min_count=5,
    sample=1e-3,
    epochs=epochs,
    seed=seed,
    workers=2,
)
model.wv.save_word2vec_format(out)
