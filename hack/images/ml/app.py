"""Says `ready` once its model is trained and has answered, then waits."""
import signal

import numpy
from sklearn.linear_model import LogisticRegression

features = numpy.random.default_rng(1).normal(size=(1000, 20))
model = LogisticRegression().fit(features, features[:, 0] > 0)
print(f"ready, accuracy {model.score(features, features[:, 0] > 0):.2f}")
signal.pause()
