# SPDX-License-Identifier: Apache-2.0
"""Makes the files of this folder; NumPy 2.4. Each array counts 0, 1, 2, ... in C order."""
import numpy as np

a = np.arange(35.0).reshape(7, 5)
b = np.arange(60.0).reshape(3, 4, 5)
np.save("f8.npy", a)
np.save("f8-fortran.npy", np.asfortranarray(a))
np.save("f4-big.npy", a.astype(">f4"))
np.save("f2-big-fortran.npy", np.asfortranarray(b.astype(">f2")))
np.save("f4-one-dim.npy", np.arange(24.0, dtype=np.float32))
np.savez("stored.npz", a=a, b=np.asfortranarray(b), c=b.astype(np.float16), ids=np.arange(7))
np.savez_compressed("deflated.npz", a=a, b=np.asfortranarray(b), c=b.astype(np.float16), ids=np.arange(7))
with open("two.npy", "wb") as f:
    np.save(f, a)
    np.save(f, b)
np.save("structured.npy", np.zeros(3, dtype=[("x", "<f4"), ("y", "<f4")]))
