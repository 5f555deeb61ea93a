"""The Python half of `signatures`: reads vectors on stdin and writes them with its part added.

`make` signs the claims of those that PyJWT is to make; `verify` adds what Upstash's SDK says.
"""

import datetime
import json
import sys

import jwt
import jwt.api_jwt
from qstash import Receiver


def at(seconds):
    """Lets PyJWT believe that it is another time."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(seconds, tz)

    jwt.api_jwt.datetime = Clock


def accepts(vector):
    at(vector["at"])
    try:
        Receiver(vector["keys"]["current"], vector["keys"]["next"]).verify(
            signature=vector["token"],
            body=vector["body"],
            url=vector.get("url"),
            clock_tolerance=vector["tolerance"],
        )
    except Exception:  # a token that is none fails in many ways
        return False
    return True


vectors = json.load(sys.stdin)
for vector in vectors:
    if sys.argv[1] == "verify":
        vector["python"] = accepts(vector)
    elif vector["made_by"] == "PyJWT":
        vector["token"] = jwt.encode(vector["claims"], vector["key"], algorithm="HS256")
json.dump(vectors, sys.stdout)
