import assert from "node:assert/strict";
import { test } from "node:test";
import { isFloatType } from "../../agent/onnx/tensor.ts";
import {
  buildNetwork,
  type NetworkName,
  PUBLISHED_PARAMETERS,
} from "../../scripts/networks/build-network.ts";

for (const name of Object.keys(PUBLISHED_PARAMETERS) as NetworkName[]) {
  test(`networks: ${name} has as many parameters as were published`, () => {
    let count = 0;
    for (const [tensor, { dims, data, dataType }] of buildNetwork(name).initializers) {
      // What a batch norm has counted is no parameter, nor is a scalar of a formula.
      const learned = isFloatType(dataType) && dims.length > 0;
      if (learned && !/running_(mean|var)$/.test(tensor)) count += data.length;
    }
    assert.equal(count, PUBLISHED_PARAMETERS[name]);
  });
}
