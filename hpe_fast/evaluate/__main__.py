import sys

from hpe_fast.evaluate import main

sys.exit(main())
