"""Says `ready` once its libraries are loaded and its port is open, then serves."""
import threading

import flask
import numpy
import pandas
import scipy.stats
from werkzeug.serving import make_server

app = flask.Flask(__name__)


@app.get("/")
def correlation():
    frame = pandas.DataFrame(numpy.random.default_rng(1).normal(size=(100, 2)), columns=["x", "y"])
    return {"r": float(scipy.stats.pearsonr(frame.x, frame.y).statistic)}


server = make_server("127.0.0.1", 0, app)
thread = threading.Thread(target=server.serve_forever)
thread.start()
print(f"ready on port {server.port}")
thread.join()
