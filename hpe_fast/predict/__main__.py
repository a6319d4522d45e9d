import sys

from hpe_fast.predict import main

sys.exit(main())
