import { type LayersModel, tf } from '../tf.ts';

/** The mask that a model within a model was given, among the arguments of its layers. */
const GIVEN = Symbol('mask of the model');

interface Arguments {
  mask?: unknown;
  [GIVEN]?: unknown;
}

/**
 * A model of TensorFlow.js that is applied gives all of its layers the same object of arguments. A layer whose inputs have a
 * mask finds it there, and so does each later layer, of whichever branch. A layer with states among its inputs writes
 * them there, and the next one refuses its own. From now on each layer has arguments of its own.
 */
export function keepArgumentsApart(model: LayersModel): void {
  for (const layer of model.layers) {
    if (Object.hasOwn(layer, 'apply')) continue;
    const isModel = layer instanceof tf.LayersModel;
    if (isModel) keepArgumentsApart(layer);
    const apply = layer.apply.bind(layer);
    layer.apply = (inputs, kwargs?: Arguments) => {
      const own: Arguments = { ...kwargs };
      if (isModel) own[GIVEN] = own.mask;
      // The mask was this layer's, unless it is that of the whole model.
      if (kwargs && 'mask' in kwargs) kwargs.mask = kwargs[GIVEN];
      return apply(inputs, own);
    };
  }
}
