"""What mypy --strict must refuse, with the error's code at the end of the line."""

import numpy as np
import pagestone as ps

s = ps.open("x.ps", 3)  # error: arg-type
s = ps.open("x.ps", "a", "1GB")  # error: call-arg
s[1] = 2  # error: index
s.group(1)  # error: arg-type
s.snapshot()["x"] = "y"
s.freeze(1)  # error: arg-type
s.tag(5)  # error: arg-type
n: str = s.version  # error: assignment
s.begin(message=5)  # error: arg-type
s.wait("3")  # error: arg-type
x: ps.Array = ps.share(np.zeros(3)).store  # error: assignment
ps.lease("a")  # error: arg-type
